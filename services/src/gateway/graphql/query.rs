//! The queries: entities by id and by account.
//! In: arguments. Out: data from the store.

use async_graphql::{Context, Object, Result};

use super::asking::{PageOf, one, page};
use super::types::{
    Account, Checkout, CheckoutPage, Expense, ExpensePage, Order, OrderPage, Payment, PaymentPage, Transaction,
    TransactionPage,
};
use crate::gateway::operations::Entity;
use crate::gateway::typed;

/// Entities by id and by account.
#[derive(Debug)]
pub(super) struct Query;

/// The cost of a read: it bounds the reads of a document, whatever they answer.
const READ: usize = 50;

/// The cost of a page: a read, and the most that the page may hold.
fn cost(limit: Option<u32>, each: usize) -> usize {
    typed::limit(limit).saturating_mul(each).saturating_add(READ)
}

#[Object]
impl Query {
    /// The balance of an account.
    #[graphql(complexity = "READ + child_complexity")]
    async fn account(&self, ctx: &Context<'_>, account: String) -> Result<Option<Account>> {
        one(ctx, Entity::Account, &account).await
    }

    /// An order, by its id.
    #[graphql(complexity = "READ + child_complexity")]
    async fn order(&self, ctx: &Context<'_>, id: String) -> Result<Option<Order>> {
        one(ctx, Entity::Order, &id).await
    }

    /// The orders of an account, page by page.
    #[graphql(complexity = "cost(limit, child_complexity)")]
    async fn orders(
        &self,
        ctx: &Context<'_>,
        account: String,
        after: Option<String>,
        limit: Option<u32>,
    ) -> Result<Option<OrderPage>> {
        page(ctx, Entity::Order, PageOf { account, after, limit }).await
    }

    /// An expense, by its id.
    #[graphql(complexity = "READ + child_complexity")]
    async fn expense(&self, ctx: &Context<'_>, id: String) -> Result<Option<Expense>> {
        one(ctx, Entity::Expense, &id).await
    }

    /// The expenses of an account, page by page.
    #[graphql(complexity = "cost(limit, child_complexity)")]
    async fn expenses(
        &self,
        ctx: &Context<'_>,
        account: String,
        after: Option<String>,
        limit: Option<u32>,
    ) -> Result<Option<ExpensePage>> {
        page(ctx, Entity::Expense, PageOf { account, after, limit }).await
    }

    /// A transaction, by its id.
    #[graphql(complexity = "READ + child_complexity")]
    async fn transaction(&self, ctx: &Context<'_>, id: String) -> Result<Option<Transaction>> {
        one(ctx, Entity::Transaction, &id).await
    }

    /// The transactions of an account, page by page.
    #[graphql(complexity = "cost(limit, child_complexity)")]
    async fn transactions(
        &self,
        ctx: &Context<'_>,
        account: String,
        after: Option<String>,
        limit: Option<u32>,
    ) -> Result<Option<TransactionPage>> {
        page(ctx, Entity::Transaction, PageOf { account, after, limit }).await
    }

    /// A checkout, by its id.
    #[graphql(complexity = "READ + child_complexity")]
    async fn checkout(&self, ctx: &Context<'_>, id: String) -> Result<Option<Checkout>> {
        one(ctx, Entity::Checkout, &id).await
    }

    /// The checkouts of an account, page by page.
    #[graphql(complexity = "cost(limit, child_complexity)")]
    async fn checkouts(
        &self,
        ctx: &Context<'_>,
        account: String,
        after: Option<String>,
        limit: Option<u32>,
    ) -> Result<Option<CheckoutPage>> {
        page(ctx, Entity::Checkout, PageOf { account, after, limit }).await
    }

    /// The payment of an order, by its order's id.
    #[graphql(complexity = "READ + child_complexity")]
    async fn payment(&self, ctx: &Context<'_>, id: String) -> Result<Option<Payment>> {
        one(ctx, Entity::Payment, &id).await
    }

    /// The payments of an account, page by page.
    #[graphql(complexity = "cost(limit, child_complexity)")]
    async fn payments(
        &self,
        ctx: &Context<'_>,
        account: String,
        after: Option<String>,
        limit: Option<u32>,
    ) -> Result<Option<PaymentPage>> {
        page(ctx, Entity::Payment, PageOf { account, after, limit }).await
    }
}
