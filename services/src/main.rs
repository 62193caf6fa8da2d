//! The binary `budget-manager`.
//! In: the process's arguments and environment. Out: its exit code.

use std::process::ExitCode;
use std::time::Duration;

use budget_manager::operator::cli;

/// A message's way is short-lived pieces of memory that one thread makes and another drops, which this allocator is good
/// at; docs/performance.md has its share in the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::output::complain(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::run(std::env::args_os().collect()));
    // What still runs was told to end, or is to be cut off: a thread that reads a terminal would never end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}
