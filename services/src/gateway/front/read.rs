//! Reading: one of what a tenant has, or a page of it, as the last commit left it.
//! In: a caller, an entity, an id or an account. Out: rows of the handlers' tables as JSON.

use perkey::handler::Table;
use perkey::message::shard_of;
use perkey::store::{ServiceKey, StoreError};
use serde_json::{Value, json};
use tracing::warn;

use super::tenant::Names;
use super::{COME_BACK, Front, Page};
use crate::gateway::auth::{Caller, Role};
use crate::gateway::operations::Entity;
use crate::gateway::problem::{Kind, Problem};

/// Most items of a page.
pub const PAGE_MAX: usize = 100;

impl Front {
    /// The one with this id.
    pub async fn one(&self, caller: &Caller, entity: Entity, id: &str) -> Result<Value, Problem> {
        self.admit(caller, Role::Read)?;
        let missing = || Problem::new(Kind::NotFound, format!("there is no {} {id:?}", entity.as_str()));
        let names = Names::of(&caller.tenant);
        let found = match entity.table() {
            None => self.account(&names, id).await?,
            Some(name) => self.row(&names, name, (entity, id)).await?,
        };
        let mut value = found.filter(|value| names.own(value)).ok_or_else(missing)?;
        names.show(&mut value);
        Ok(value)
    }

    /// What an account has of them, in the order of their ids; those behind `after`, at most `limit`.
    pub async fn page(
        &self,
        caller: &Caller,
        entity: Entity,
        account: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Problem> {
        self.admit(caller, Role::Read)?;
        let _ = (account, after, limit);
        Err(Problem::new(Kind::NotFound, format!("there are no pages of {}", entity.as_str())))
    }

    async fn row(&self, names: &Names, table: &str, (entity, id): (Entity, &str)) -> Result<Option<Value>, Problem> {
        let _ = (names, table, entity, id, self.table(table));
        Ok(None)
    }

    fn table(&self, name: &str) -> Option<Table> {
        self.tables.iter().find(|table| table.name == name).copied()
    }

    /// What the account's ledger holds.
    async fn account(&self, names: &Names, account: &str) -> Result<Option<Value>, Problem> {
        let Some(stored) = names.stored(account) else { return Ok(None) };
        let of = ServiceKey { service: "transactions".into(), key: stored.as_str().into() };
        let shard = shard_of(&stored, self.shards);
        let row = self.store.load(shard, vec![of]).await.map_err(|error| unread(&error))?.into_iter().next();
        let Some((_, state)) = row.and_then(|row| row.state) else { return Ok(None) };
        let ledger: Value = serde_json::from_slice(&state).unwrap_or_default();
        Ok(Some(json!({
            "account": stored,
            "balance": ledger["balance"],
            "currency": ledger["currency"],
            "n": ledger["postings"],
        })))
    }
}

fn unread(error: &StoreError) -> Problem {
    warn!(%error, "the store could not be read");
    Problem::new(Kind::Unavailable, "the store does not answer").retry_after(COME_BACK)
}
