//! The mutations: the operations, in GraphQL's terms.
//! In: arguments. Out: the operation's answer.

use async_graphql::{Context, Object, Result};

use super::asking::{Input, told};
use super::types::{
    Budget, BudgetInput, ChargeInput, Checkout, CheckoutInput, Expense, ExpenseInput, Order, OrderChange, OrderInput,
    Payment, Reason, Transaction, TransactionInput,
};

/// Operations. Each takes an `idempotencyKey`; the header `Idempotency-Key` does as well if it is the only one of a
/// document. Repeated with the same key and the same input, it answers the same and has no other effect.
#[derive(Debug)]
pub(super) struct Mutation;

/// The cost of a mutation.
const CALL: usize = 50;

/// Every operation that has a mutation.
#[cfg(test)]
const OPERATIONS: [&str; 10] = [
    "orders.place",
    "orders.change",
    "orders.complete",
    "orders.cancel",
    "expenses.record",
    "expenses.budget",
    "transactions.post",
    "checkouts.start",
    "payments.charge",
    "payments.refund",
];

#[Object]
impl Mutation {
    /// Places an order.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn create_order(
        &self,
        ctx: &Context<'_>,
        input: OrderInput,
        idempotency_key: Option<String>,
    ) -> Result<Option<Order>> {
        let input = Input { id: None, body: input, key: idempotency_key };
        told(ctx, "orders.place", input).await
    }

    /// Completes or cancels an order.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn change_order(
        &self,
        ctx: &Context<'_>,
        id: String,
        input: OrderChange,
        idempotency_key: Option<String>,
    ) -> Result<Option<Order>> {
        let input = Input { id: Some(&id), body: input, key: idempotency_key };
        told(ctx, "orders.change", input).await
    }

    /// Marks an order as paid for and booked.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn complete_order(
        &self,
        ctx: &Context<'_>,
        id: String,
        idempotency_key: Option<String>,
    ) -> Result<Option<Order>> {
        let input = Input { id: Some(&id), body: Reason { reason: None }, key: idempotency_key };
        told(ctx, "orders.complete", input).await
    }

    /// Cancels an order.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn cancel_order(
        &self,
        ctx: &Context<'_>,
        id: String,
        reason: Option<String>,
        idempotency_key: Option<String>,
    ) -> Result<Option<Order>> {
        let input = Input { id: Some(&id), body: Reason { reason }, key: idempotency_key };
        told(ctx, "orders.cancel", input).await
    }

    /// Records an expense.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn create_expense(
        &self,
        ctx: &Context<'_>,
        input: ExpenseInput,
        idempotency_key: Option<String>,
    ) -> Result<Option<Expense>> {
        let input = Input { id: None, body: input, key: idempotency_key };
        told(ctx, "expenses.record", input).await
    }

    /// Sets the budget of a category for each month.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn set_budget(
        &self,
        ctx: &Context<'_>,
        input: BudgetInput,
        idempotency_key: Option<String>,
    ) -> Result<Option<Budget>> {
        let input = Input { id: None, body: input, key: idempotency_key };
        told(ctx, "expenses.budget", input).await
    }

    /// Books an amount on an account.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn create_transaction(
        &self,
        ctx: &Context<'_>,
        input: TransactionInput,
        idempotency_key: Option<String>,
    ) -> Result<Option<Transaction>> {
        let input = Input { id: None, body: input, key: idempotency_key };
        told(ctx, "transactions.post", input).await
    }

    /// Starts a checkout: order, payment, expense and transaction, or none of them.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn checkout(
        &self,
        ctx: &Context<'_>,
        input: CheckoutInput,
        idempotency_key: Option<String>,
    ) -> Result<Option<Checkout>> {
        let input = Input { id: None, body: input, key: idempotency_key };
        told(ctx, "checkouts.start", input).await
    }

    /// Takes the money for an order. The key is required.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn charge(
        &self,
        ctx: &Context<'_>,
        input: ChargeInput,
        idempotency_key: Option<String>,
    ) -> Result<Option<Payment>> {
        let input = Input { id: None, body: input, key: idempotency_key };
        told(ctx, "payments.charge", input).await
    }

    /// Gives the money of an order back.
    #[graphql(complexity = "CALL + child_complexity")]
    async fn refund(
        &self,
        ctx: &Context<'_>,
        id: String,
        reason: Option<String>,
        idempotency_key: Option<String>,
    ) -> Result<Option<Payment>> {
        let input = Input { id: Some(&id), body: Reason { reason }, key: idempotency_key };
        told(ctx, "payments.refund", input).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::gateway::operations;

    #[test]
    fn every_operation_has_its_mutation() {
        let mutations: BTreeSet<_> = super::OPERATIONS.into_iter().collect();
        let all: BTreeSet<_> = operations::OPERATIONS.iter().map(|operation| operation.name).collect();
        assert_eq!(mutations, all);
    }
}
