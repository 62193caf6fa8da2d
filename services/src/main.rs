//! The binary `budget-manager`.
//! In: the process's arguments and environment. Out: its exit code.

use std::process::ExitCode;

use budget_manager::operator::{self, cli};
use perkey::unstable::engine::host::in_runtime;

/// The allocator: a message lives as short-lived pieces of memory that one thread makes and another drops, which
/// mimalloc handles well; docs/performance.md has its share in the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match in_runtime(operator::run(std::env::args_os().collect())) {
        Ok(code) => code,
        Err(failure) => {
            failure.lines().into_iter().for_each(cli::output::complain);
            ExitCode::from(failure.code())
        }
    }
}
