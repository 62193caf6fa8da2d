//! The program as its user has it: fed, killed, fed again.
//! In: lines. Out: accounts that do not tell how often the program died.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loyalty-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder can be made");
        Self(path)
    }

    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loyalty"));
        command.current_dir(&self.0).env("LOYALTY_LOG", "error");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.program().args(arguments).output().expect("the program starts")
    }

    /// The output of a run that ends well.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {:?}: {text}", output.status);
        String::from_utf8(output.stdout).expect("it writes text")
    }

    /// The exit code and the complaint of a run that fails.
    fn fails(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// 3,000 lines for 30 members: each earns 70 times 10 points, and redeems 30 times 5.
fn lines() -> String {
    let mut lines = String::new();
    for n in 0..3_000 {
        let (what, points) = if n / 30 % 10 < 7 { ("earn", 10) } else { ("redeem", 5) };
        let member = n % 30;
        writeln!(lines, r#"{{"id":"{n}","do":"{what}","member":"m-{member}","points":{points}}}"#).expect("it fits");
    }
    lines
}

#[test]
fn killed_and_fed_again_it_counts_each_line_once() {
    let folder = Folder::new("killed");
    let text = lines();
    std::fs::write(folder.0.join("lines.ndjson"), &text).expect("a file can be written");
    // Each time it has read some more when it is killed.
    for part in 1..=5 {
        let mut child = folder.program().args(["load", "-"]).stdin(Stdio::piped()).spawn().expect("it starts");
        let fed = &text.as_bytes()[..text.len() * part / 5];
        child.stdin.as_mut().expect("it has an input").write_all(fed).expect("it reads");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }
    for _ in 0..2 {
        assert_eq!(folder.says(&["load", "lines.ndjson"]), "3000 lines, 0 refused\n");
        for member in [0, 7, 29] {
            let shown = folder.says(&["show", &format!("m-{member}")]);
            assert!(shown.starts_with(&format!("m-{member}: 550 points")), "{shown}");
        }
    }
}

#[test]
fn what_is_wrong_is_told_with_an_exit_code() {
    let folder = Folder::new("wrong");
    let wrong = |arguments: &[&str], code: i32, parts: &[&str]| {
        let (found, text) = folder.fails(arguments);
        assert!(
            found == Some(code) && parts.iter().all(|part| text.contains(part)),
            "{arguments:?}: {found:?}: {text}"
        );
    };
    wrong(&["sing"], 64, &["loyalty: load FILE"]);
    wrong(&["load", "nowhere.ndjson"], 1, &["nowhere.ndjson", "No such file"]);
    // Everything that is wrong with the settings at once.
    let settings = "[ingress]\ncredit = 5\n[retry]\nattempts = 0\n[kafka]\nbrokers = \"localhost:9092\"\n";
    std::fs::write(folder.0.join("loyalty.toml"), settings).expect("a file can be written");
    wrong(&["serve"], 78, &["did you mean ingress.credits?", "retry.attempts must be", "perkey's feature `kafka`"]);
    std::fs::write(folder.0.join("loyalty.toml"), "[app]\nvalid_seconds = \"soon\"\n").expect("a file can be written");
    wrong(&["serve"], 78, &["app.valid_seconds: \"soon\" is not a number"]);
    std::fs::remove_file(folder.0.join("loyalty.toml")).expect("it is there");
    std::fs::write(folder.0.join("bad.ndjson"), "{\"id\":\"1\"}\nno line\n").expect("a file can be written");
    wrong(&["load", "bad.ndjson"], 1, &["line 1: missing field `do`", "line 2: ", "2 lines are no messages"]);
    assert!(folder.says(&["--help"]).contains("show MEMBER   shows the account of a member"));
}

#[test]
fn told_to_stop_it_drains_and_ends_well() {
    let folder = Folder::new("told");
    let mut child = folder.program();
    child.arg("serve").env("LOYALTY_LOG", "info").stderr(Stdio::piped());
    let mut child = child.spawn().expect("it starts");
    let mut log = std::io::BufReader::new(child.stderr.take().expect("its log is read"));
    let mut line = String::new();
    while !line.contains("messages are being handled") {
        line.clear();
        let read = std::io::BufRead::read_line(&mut log, &mut line).expect("its log can be read");
        assert!(read > 0, "it ended early");
    }
    // A second process is refused while it runs.
    let (code, text) = folder.fails(&["serve"]);
    assert!(code == Some(4) && text.contains("another process runs this store"), "{code:?}: {text}");
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill is there");
    assert!(told.success());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut log, &mut rest).expect("its log can be read");
    assert!(child.wait().expect("it ends").success() && rest.contains("drained"), "{rest}");
    assert!(Path::new(&folder.0).join("loyalty.db").exists(), "its store is where it was started");
}
