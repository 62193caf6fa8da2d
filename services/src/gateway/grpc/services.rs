//! The methods of each service, as rows.
//! In: calls. Out: the operation, the entity or the page that each is about.

use tonic::{Request, Response, Status};

use super::calls::Calls;
use super::proto::checkouts_server::Checkouts;
use super::proto::expenses_server::Expenses;
use super::proto::orders_server::Orders;
use super::proto::payments_server::Payments;
use super::proto::transactions_server::Transactions;
use super::proto::{
    self, CancelOrderRequest, ChangeOrderRequest, ChargeRequest, CompleteOrderRequest, GetAccountRequest, GetRequest,
    ListCheckoutsResponse, ListExpensesResponse, ListOrdersResponse, ListPaymentsResponse, ListRequest,
    ListTransactionsResponse, PlaceOrderRequest, PostTransactionRequest, RecordExpenseRequest, RefundRequest,
    SetBudgetRequest, StartCheckoutRequest,
};
use crate::gateway::operations::Entity;

/// Defines a service: its commands with their operations, and the reads of its entities.
macro_rules! services {
    ($($service:ident {
        $(tell $command:ident($request:ty) -> $reply:ty: $operation:literal;)*
        $(one $one:ident($asked:ty, $id:ident) -> $found:ty: $of:expr;)*
        page $page:ident -> $listed:ty: $entity:expr;
    })*) => {
        /// Every operation that has a method.
        #[cfg(test)]
        pub(super) const OPERATIONS: &[&str] = &[$($($operation,)*)*];

        $(#[tonic::async_trait]
        impl $service for Calls {
            $(async fn $command(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                self.command($operation, request).await
            })*

            $(async fn $one(&self, request: Request<$asked>) -> Result<Response<$found>, Status> {
                self.one($of, request.metadata(), &request.get_ref().$id).await
            })*

            async fn $page(&self, request: Request<ListRequest>) -> Result<Response<$listed>, Status> {
                self.page($entity, request).await
            }
        })*
    };
}

services! {
    Orders {
        tell place_order(PlaceOrderRequest) -> proto::Order: "orders.place";
        tell change_order(ChangeOrderRequest) -> proto::Order: "orders.change";
        tell complete_order(CompleteOrderRequest) -> proto::Order: "orders.complete";
        tell cancel_order(CancelOrderRequest) -> proto::Order: "orders.cancel";
        one get_order(GetRequest, id) -> proto::Order: Entity::Order;
        page list_orders -> ListOrdersResponse: Entity::Order;
    }

    Expenses {
        tell record_expense(RecordExpenseRequest) -> proto::Expense: "expenses.record";
        tell set_budget(SetBudgetRequest) -> proto::Budget: "expenses.budget";
        one get_expense(GetRequest, id) -> proto::Expense: Entity::Expense;
        page list_expenses -> ListExpensesResponse: Entity::Expense;
    }

    Transactions {
        tell post_transaction(PostTransactionRequest) -> proto::Transaction: "transactions.post";
        one get_transaction(GetRequest, id) -> proto::Transaction: Entity::Transaction;
        one get_account(GetAccountRequest, account) -> proto::Account: Entity::Account;
        page list_transactions -> ListTransactionsResponse: Entity::Transaction;
    }

    Checkouts {
        tell start_checkout(StartCheckoutRequest) -> proto::Checkout: "checkouts.start";
        one get_checkout(GetRequest, id) -> proto::Checkout: Entity::Checkout;
        page list_checkouts -> ListCheckoutsResponse: Entity::Checkout;
    }

    Payments {
        tell charge(ChargeRequest) -> proto::Payment: "payments.charge";
        tell refund(RefundRequest) -> proto::Payment: "payments.refund";
        one get_payment(GetRequest, id) -> proto::Payment: Entity::Payment;
        page list_payments -> ListPaymentsResponse: Entity::Payment;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::gateway::operations;

    #[test]
    fn every_operation_has_its_method() {
        let methods: BTreeSet<_> = super::OPERATIONS.iter().copied().collect();
        let all: BTreeSet<_> = operations::OPERATIONS.iter().map(|operation| operation.name).collect();
        assert_eq!(methods, all);
    }
}
