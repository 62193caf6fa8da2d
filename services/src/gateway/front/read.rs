//! Reads one entity of a tenant, or a page of them, as the last commit left it.
//! In: a caller, an entity, an id or an account. Out: rows of the handlers' tables as JSON.

use perkey::StoreError;
use perkey::unstable::message::shard_of;
use perkey::unstable::store::ServiceKey;
use perkey::unstable::store::query::{FoundRows, RowsAsk};
use serde_json::{Value, json};
use tracing::warn;

use super::tenant::Names;
use super::{COME_BACK, Front, Page};
use crate::gateway::auth::{Caller, Role};
use crate::gateway::operations::Entity;
use crate::gateway::problem::{Kind, Problem};

/// The number of items of a page, by default.
pub const PAGE: usize = 20;

/// The most items of a page.
pub const PAGE_MAX: usize = 100;

impl Front {
    /// The entity with this id.
    pub async fn one(&self, caller: &Caller, entity: Entity, id: &str) -> Result<Value, Problem> {
        self.admit(caller, Role::Read)?;
        let missing = || Problem::new(Kind::NotFound, format!("there is no {} {id:?}", entity.as_str()));
        let names = Names::of(&caller.tenant);
        let found = match entity {
            Entity::Account => self.account(&names, id).await?,
            Entity::Expense | Entity::Transaction => self.named(&names, entity, id).await?,
            Entity::Order | Entity::Checkout | Entity::Payment => match names.stored(id) {
                Some(stored) => self.rows(entity, vec![(entity.id_member(), stored)], None, 1, 0).await?.rows.pop(),
                None => None,
            },
        };
        let mut value = found.filter(|value| names.own(value)).ok_or_else(missing)?;
        names.show(&mut value);
        Ok(value)
    }

    /// The entities of an account, in the order of their ids, from behind `after`; at most `limit`, and fewer if their
    /// texts exceed the bound of bytes.
    pub async fn page(
        &self,
        caller: &Caller,
        entity: Entity,
        account: &str,
        after: Option<&str>,
        limit: usize,
        bytes: usize,
    ) -> Result<Page, Problem> {
        self.admit(caller, Role::Read)?;
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Problem::new(Kind::Malformed, format!("limit is 1 to {PAGE_MAX}, not {limit}")));
        }
        let names = Names::of(&caller.tenant);
        let nothing = Page { items: Vec::new(), next: None };
        let Some(stored) = names.stored(account) else { return Ok(nothing) };
        let after = match (entity, after) {
            (_, None) => None,
            (Entity::Expense | Entity::Transaction, Some(id)) => Some(vec![stored.clone(), id.to_owned()]),
            (_, Some(id)) => match names.stored(id) {
                Some(id) => Some(vec![id]),
                None => return Ok(nothing),
            },
        };
        let FoundRows { rows: mut items, more } =
            self.rows(entity, vec![("account", stored)], after, limit, bytes).await?;
        items.retain(|item| names.own(item));
        items.iter_mut().for_each(|item| names.show(item));
        let last = items.last().and_then(|item| item.get(entity.id_member())).and_then(Value::as_str);
        let next = last.filter(|_| more).map(str::to_owned);
        Ok(Page { items, next })
    }

    /// The tenant's entity whose id came from its message. Only its account tells whose it is, and each account has ids
    /// of its own: imports and topics may give one id to several.
    async fn named(&self, names: &Names, entity: Entity, id: &str) -> Result<Option<Value>, Problem> {
        let mut found = Vec::new();
        for (first, end) in names.ranges() {
            let after = Some(vec![first, String::new()]);
            let two = self.rows(entity, vec![("id", id.to_owned())], after, 2, usize::MAX).await?.rows;
            found.extend(two.into_iter().filter(|row| {
                row["account"].as_str().is_some_and(|account| end.as_deref().is_none_or(|end| account < end))
            }));
        }
        if found.len() > 1 {
            let entity = entity.as_str();
            let detail = format!("several accounts have {entity} {id:?}; ask for a page of the account that you mean");
            return Err(Problem::new(Kind::Ambiguous, detail));
        }
        Ok(found.pop())
    }

    async fn rows(
        &self,
        entity: Entity,
        equals: Vec<(&'static str, String)>,
        after: Option<Vec<String>>,
        limit: usize,
        bytes: usize,
    ) -> Result<FoundRows, Problem> {
        let table = self.tables.iter().find(|table| Some(table.name) == entity.table()).copied();
        let Some(table) = table else {
            return Err(Problem::new(Kind::NotFound, format!("there are no pages of {}", entity.as_str())));
        };
        self.store.queries().rows(RowsAsk { table, equals, after, limit, bytes }).await.map_err(|error| unread(&error))
    }

    /// The balance of an account.
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
