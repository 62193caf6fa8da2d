//! Names that come from outside: of accounts, orders, checkouts and categories.
//! In: text. Out: a name that any store and any key can hold, or the reason why the text is not one.

use perkey::{Key, MessageError, check_name};
use serde::{Deserialize, Serialize};

/// Defines kinds of names: the word for each in messages, and the type that holds it.
macro_rules! names {
    ($($(#[$doc:meta])* $word:literal => $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = MessageError;

            fn try_from(name: String) -> Result<Self, MessageError> {
                check_name($word, name.as_bytes())?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl From<&$name> for Key {
            fn from(name: &$name) -> Self {
                name.0.as_str().into()
            }
        }
    )*};
}

names! {
    /// An account's name: 1 to 256 bytes; see [`check_name`]. It is the key of every message about it.
    "account" => Account;
    /// An order's id: 1 to 256 bytes; see [`check_name`]. It is the key of every message about it.
    "order" => OrderId;
    /// A checkout's id: 1 to 256 bytes; see [`check_name`]. It is the key of every message about it.
    "saga" => SagaId;
    /// A category's name: 1 to 256 bytes; see [`check_name`].
    "category" => Category;
}
