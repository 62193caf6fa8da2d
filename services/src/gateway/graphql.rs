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

/// The deepest nesting of fields in a document.
const DEPTH_MAX: usize = 10;
/// The deepest nesting in a document about the schema alone: tools ask for types of types, which takes more.
const ABOUT_DEPTH_MAX: usize = 16;
/// The most fields that it may ask for, each counted as often as its page may hold it.
const COMPLEXITY_MAX: usize = 5_000;
/// The most aliases in a document, and so the most mutations.
const ALIASES_MAX: usize = 30;
/// The most bytes of a document, without its variables.
const DOCUMENT_BYTES_MAX: usize = 16 << 10;
/// The deepest nesting of brackets of all kinds, and of fragments: the parser follows both on its stack.
const NESTING_MAX: usize = 32;
/// The most fields, with each fragment counted where it is spread. The cost of checking a document grows with them.
const SELECTIONS_MAX: usize = 2_000;
/// The most bytes of variables that are copied to the places of their use.
const COPIED_BYTES_MAX: usize = 32 << 20;
/// The most directives on a field.
const DIRECTIVES_MAX: usize = 5;

type Served = Schema<Query, Mutation, EmptySubscription>;

/// The schemas that answer.
struct Door {
    schema: Served,
    /// The schema for documents about the schema alone.
    about: Served,
    rest: Rest,
}

/// The templates of [`routes`].
pub const TEMPLATES: [&str; 2] = [DOOR, SCHEMA];

const DOOR: &str = "/graphql";
const SCHEMA: &str = "/graphql/schema";

/// The door's routes. Introspection works only without tokens; a file has the schema in any case.
pub fn routes(rest: &Rest) -> Router {
    let open = rest.auth.is_open();
    let (schema, about) = (schema(open, DEPTH_MAX), schema(open, ABOUT_DEPTH_MAX));
    let door = Arc::new(Door { schema, about, rest: rest.clone() });
    let answer = async |State(door): State<Arc<Door>>, request: Request| post::answer(&door, request).await;
    Router::new().route(DOOR, posted(answer)).route(SCHEMA, get(async || sdl())).with_state(door)
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
