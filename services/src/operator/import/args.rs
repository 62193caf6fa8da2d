//! The arguments of an import.
//! In: the command line. Out: the file, its source, its format.

use clap::{Args, ValueEnum};

use super::amounts::Scale;

/// The import to run.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// CSV with a header (account, amount, currency, at; id and memo may be left out), or NDJSON with the same fields;
    /// - reads standard input
    pub file: String,
    /// The service that handles the messages
    #[arg(long)]
    pub service: String,
    /// The input's name: its progress and the ids of lines without one depend on it [default: the file's name]
    #[arg(long)]
    pub source: Option<String>,
    /// Read every line again, also those of an earlier run; repeats are dropped by their id
    #[arg(long)]
    pub from_start: bool,
    /// The input's format
    #[arg(long, value_enum, default_value_t = ImportFormat::Auto)]
    pub format: ImportFormat,
    /// The scale of amounts [default: told from all of the file's amounts; whole numbers are minor units]
    #[arg(long, value_enum)]
    pub amounts: Option<Scale>,
    /// The file will not grow: its last line counts even without a line end
    #[arg(long)]
    pub complete: bool,
    /// The file of refused lines [default: SOURCE.rejects.ndjson, beside the file or in the working directory]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<String>,
}

/// The format of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImportFormat {
    /// By the file's extension, else by its first character
    Auto,
    /// Comma-separated values with a header
    Csv,
    /// One JSON object a line
    Ndjson,
}
