//! What messages and states have to be, said in words that help whoever meets them first in an error of the compiler.
//! In: types. Out: bounds that every type with the right derives fulfils.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a handler can understand: anything that is decoded without borrowing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the message of a handler",
    label = "it is not decoded from a payload",
    note = "put `#[derive(serde::Deserialize)]` on it; it owns what it holds: `String`, not `&str`; `Arc`, not `Rc`"
)]
pub trait Understood: DeserializeOwned + Send {}

#[diagnostic::do_not_recommend]
impl<T: DeserializeOwned + Send> Understood for T {}

/// What a handler can remember for a key: stored with each commit that changed it, copied before each turn, and empty for
/// a key that nothing has happened to.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the state of a handler",
    label = "it cannot be stored, copied, or made for a new key",
    note = "put `#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]` on it; it owns what it holds: \
            `String`, not `&str`; `Arc`, not `Rc`"
)]
pub trait Remembered: Default + Clone + Serialize + DeserializeOwned + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Default + Clone + Serialize + DeserializeOwned + Send + 'static> Remembered for T {}
