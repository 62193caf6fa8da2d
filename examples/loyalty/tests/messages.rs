//! The compiler's messages for mistakes in a first handler.
//! In: the files of `tests/wrong`, none of which compiles. Out: the words beside each; `BLESS=1` writes them again.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use perkey::serde_json::{self, Value};

/// The library files that cargo made of the crates that the files use; it knows which of those there belong together.
fn crates() -> Vec<(String, PathBuf)> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut cargo = Command::new("cargo");
    // What cargo tells a test about its package would make build scripts that look at it run again.
    let told = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars().filter(|(name, _)| told(name)) {
        cargo.env_remove(name);
    }
    for name in ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "LD_LIBRARY_PATH", "OUT_DIR"] {
        cargo.env_remove(name);
    }
    cargo.args([
        "build",
        "--offline",
        "--locked",
        "--lib",
        "--tests",
        "--message-format=json",
        "--manifest-path",
        manifest,
    ]);
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Vec<Value> = lines(&output.stdout);
    let path = |name: &str| {
        let of = |artifact: &&Value| artifact["reason"] == "compiler-artifact" && artifact["target"]["name"] == name;
        let files = told.iter().find(of).and_then(|artifact| artifact["filenames"].as_array()).expect("cargo built it");
        let file = files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".rlib"));
        (name.to_owned(), PathBuf::from(file.expect("a library is among its files")))
    };
    ["perkey", "serde"].map(path).into()
}

fn lines(text: &[u8]) -> Vec<Value> {
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The errors of a file: each with its labels, and the notes and help below it.
fn said(file: &Path, crates: &[(String, PathBuf)]) -> String {
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=json", "--out-dir"]);
    rustc.arg(std::env::temp_dir()).arg(file);
    for (name, path) in crates {
        let folder = path.parent().expect("a file is in a folder");
        // A library stands beside what it depends on, or one folder above.
        rustc.arg("-L").arg(format!("dependency={}", folder.join("deps").display()));
        rustc.arg("-L").arg(format!("dependency={}", folder.display()));
        rustc.arg("--extern").arg(format!("{name}={}", path.display()));
    }
    let output = rustc.output().expect("rustc starts");
    assert!(!output.status.success(), "{} compiles", file.display());
    let mut text = String::new();
    let told = lines(&output.stderr);
    for error in told.iter().filter(|error| error["level"] == "error" && error["spans"][0].is_object()) {
        writeln!(text, "error: {}", plain(&error["message"])).expect("it fits");
        for span in error["spans"].as_array().into_iter().flatten().filter(|span| span["label"].is_string()) {
            let code = span["text"][0]["text"].as_str().unwrap_or_default().trim();
            writeln!(text, "  {code}\n    {}", plain(&span["label"])).expect("it fits");
        }
        // What else there is changes with every crate, and helps nobody here.
        let others = |child: &&Value| plain(&child["message"]).contains("other types implement trait");
        for child in error["children"].as_array().into_iter().flatten().filter(|child| !others(child)) {
            writeln!(text, "  {}: {}", plain(&child["level"]), plain(&child["message"])).expect("it fits");
        }
    }
    text
}

/// A message in one line; paths of files that hold long types are of one machine.
fn plain(message: &Value) -> String {
    let lines = message.as_str().unwrap_or_default().lines().map(str::trim);
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_compiler_says_what_to_do() {
    let crates = crates();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrong");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    let mut problems = Vec::new();
    for file in files {
        let (said, words) = (said(&file, &crates), file.with_extension("txt"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&words, &said).expect("it can be written");
        }
        let expected = std::fs::read_to_string(&words).unwrap_or_default();
        if said != expected {
            problems.push(format!("{}\nexpected:\n{expected}\nfound:\n{said}", file.display()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
