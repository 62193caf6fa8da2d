//! The GraphQL door: the operations and reads of REST as mutations and queries.
//! In: POST /graphql. Out: data, and errors with the codes that all doors share; the schema at GET /graphql/schema.

mod asking;
mod document;
mod error;
mod expanded;
mod mutation;
mod post;
mod query;
mod text;
mod types;
mod variables;

use std::sync::Arc;

use async_graphql::{EmptySubscription, Schema};
use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{get, post as posted};

use self::mutation::Mutation;
use self::query::Query;
use super::rest::Rest;

/// How deep a document may ask.
const DEPTH_MAX: usize = 10;
/// How deep one about the schema alone may: tools ask for types of types, which takes more.
const ABOUT_DEPTH_MAX: usize = 16;
/// How many fields it may ask for, each as often as its page may hold it.
const COMPLEXITY_MAX: usize = 5_000;
/// How many aliases it may have, and so how many mutations.
const ALIASES_MAX: usize = 30;
/// How long it may be, without its variables.
const DOCUMENT_BYTES_MAX: usize = 16 << 10;
/// How deep its brackets of all kinds may be nested, and its fragments within each other: who reads it follows both on its stack.
const NESTING_MAX: usize = 32;
/// How many fields it may have, each fragment standing where it is spread. The cost of checking a document follows them.
const SELECTIONS_MAX: usize = 2_000;
/// How many bytes of variables may be copied to where they are used.
const COPIED_BYTES_MAX: usize = 32 << 20;
/// How many directives a field may have.
const DIRECTIVES_MAX: usize = 5;

type Served = Schema<Query, Mutation, EmptySubscription>;

/// What answers.
struct Door {
    schema: Served,
    /// Answers what is about the schema alone.
    about: Served,
    rest: Rest,
}

/// The door's routes. The schema tells about itself only where no tokens are asked for; in any case a file has it.
pub fn routes(rest: &Rest) -> Router {
    let open = rest.auth.is_open();
    let (schema, about) = (schema(open, DEPTH_MAX), schema(open, ABOUT_DEPTH_MAX));
    let door = Arc::new(Door { schema, about, rest: rest.clone() });
    let answer = async |State(door): State<Arc<Door>>, request: Request| post::answer(&door, request).await;
    Router::new().route("/graphql", posted(answer)).route("/graphql/schema", get(async || sdl())).with_state(door)
}

fn schema(introspection: bool, depth: usize) -> Served {
    let schema = Schema::build(Query, Mutation, EmptySubscription)
        .limit_depth(depth)
        .limit_complexity(COMPLEXITY_MAX)
        .limit_directives(DIRECTIVES_MAX);
    if introspection { schema.finish() } else { schema.disable_introspection().disable_suggestions().finish() }
}

/// The schema in its own language.
pub fn sdl() -> String {
    schema(true, DEPTH_MAX).sdl()
}

#[cfg(test)]
mod tests {
    use crate::gateway::published;

    #[test]
    fn the_published_schema_is_the_served_one() {
        published("schema.graphql", &super::sdl());
    }
}
