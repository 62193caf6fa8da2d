//! The command line's messages about surroundings, settings and inputs that are not as they should be: the real binary.
//! In: variables, flags, files, a standard output that cannot be written. Out: exit codes, and words that help.

use std::process::Stdio;

use crate::cli::{Cli, Said};

const POSTINGS: &str = "account,amount,currency,at\na,1,EUR,2026-01-31\n";

/// Runs it with these variables beside its own.
async fn with(cli: &Cli, variables: &[(&str, &str)], args: &[&str]) -> Said {
    let output = cli.place.command(args).envs(variables.iter().copied()).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs it on a standard output that has no room.
async fn on_a_full_disk(cli: &Cli, args: &[&str]) -> Said {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = cli.place.command(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().await.unwrap();
    Said { code: output.status.code(), out: String::new(), err: String::from_utf8(output.stderr).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_others_and_empty_ones_change_nothing() {
    let cli = Cli::new().await;
    let links = [
        ("BUDGET_MANAGER_PORT", "tcp://10.0.0.1:8080"),
        ("BUDGET_MANAGER_SERVICE_HOST", "10.0.0.1"),
        ("BUDGET_MANAGER_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
    ];
    let said = with(&cli, &links, &["config", "check"]).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let empty = ["CONFIG", "OUTPUT", "LOG", "LOG_FORMAT", "RETRY__ATTEMPTS"].map(|name| format!("BUDGET_{name}"));
    let mut empty: Vec<_> = empty.iter().map(|name| (name.as_str(), "")).collect();
    empty.extend([("RUST_LOG", ""), ("PERKEY_TOKEN", "")]);
    let said = with(&cli, &empty, &["config", "check"]).await;
    assert_eq!((said.code, said.out.trim()), (Some(0), "The settings are fine."), "{said:?}");
    with(&cli, &[("BUDGET_STROE__URL", "x")], &["config", "check"]).await.fails(78, &["did you mean store.url?"]);
    let said = with(&cli, &[("BUDGET_RETRY_ATTEMPTS", "3")], &["config", "check"]).await;
    assert!(said.code == Some(0) && said.err.contains("BUDGET_RETRY__ATTEMPTS"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_on_the_command_line_is_warned_of_and_shown_nowhere() {
    let cli = Cli::new().await;
    let secret = "postgres://ann:pa/ss?w@rd@127.0.0.1/db";
    let said = cli.run(&["config", "show", "--set", &format!("store.url={secret}")]).await;
    assert!(said.err.contains("a secret is given on the command line") && said.err.contains("store.url"), "{said:?}");
    assert!(said.out.contains("postgres://ann:***@127.0.0.1/db"), "{said:?}");
    assert!(!format!("{said:?}").contains("pa/ss"), "{said:?}");
    let plain = cli.run(&["config", "show", "--set", "store.url=postgres://ann@127.0.0.1/db"]).await;
    assert!(!plain.err.contains("a secret"), "{plain:?}");
    // A variable of the environment is nobody else's to read.
    let said = with(&cli, &[("BUDGET_STORE__URL", secret)], &["config", "show"]).await;
    assert!(!said.err.contains("a secret") && !said.out.contains("pa/ss"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_is_no_success() {
    let cli = Cli::new().await;
    let token =
        ["token:new", "--set", "gateway.tokens=tokens", "--tenant", "acme", "--principal", "billing", "--role", "read"];
    on_a_full_disk(&cli, &token).await.fails(1, &["cannot write: No space left on device"]);
    assert_eq!(
        std::fs::read_to_string(cli.place.folder.join("tokens")).unwrap_or_default(),
        "",
        "nobody saw the token"
    );
    cli.file("f.csv", POSTINGS);
    let import = ["import", "--service", "balances", "f.csv"];
    on_a_full_disk(&cli, &import).await.fails(1, &["cannot write: No space left"]);
    assert_eq!(cli.json(&import).await.ends(0)["skipped"], 1, "what was done is kept");
    for args in [
        &["config", "show"][..],
        &["config", "check"],
        &["status"],
        &["explain", "a"],
        &["dlq:peek", "--output", "json"],
        &["keys:top"],
        &["doctor"],
        &["outbox:stats"],
        &["completions", "bash"],
        &["--help"],
        &["import", "--help"],
        &["--version"],
    ] {
        on_a_full_disk(&cli, args).await.fails(1, &["cannot write: No space left on device"]);
    }

    // A reader that has gone had enough; of a token it had nothing.
    let closed = async |args: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = cli.place.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(closed(&["config", "show"]).await, (Some(0), String::new()));
    assert_eq!(closed(&["--help"]).await, (Some(0), String::new()));
    assert_eq!(closed(&token).await.0, Some(1));
    assert_eq!(
        std::fs::read_to_string(cli.place.folder.join("tokens")).unwrap_or_default(),
        "",
        "nobody saw the token"
    );

    // An editor left the last line without its end.
    assert_eq!(cli.run(&token).await.code, Some(0));
    let tokens = std::fs::read_to_string(cli.place.folder.join("tokens")).unwrap();
    cli.file("tokens", tokens.trim_end());
    assert_eq!(cli.run(&token).await.code, Some(0));
    let tokens = std::fs::read_to_string(cli.place.folder.join("tokens")).unwrap();
    assert_eq!(tokens.lines().map(|line| line.split(' ').count()).collect::<Vec<_>>(), [4, 4], "{tokens}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_filter_that_would_silence_the_log_is_refused() {
    let cli = Cli::new().await;
    for filter in ["warning", "verbose", "perkey", "info,verbose", "garbage===", "perkey=loud"] {
        let said = with(&cli, &[("BUDGET_LOG", filter)], &["config", "check"]).await;
        said.fails(78, &["BUDGET_LOG", "error, warn, info, debug, trace"]);
    }
    for filter in ["warn", "INFO,", "off", "info,perkey=debug", "perkey[turn]=trace"] {
        assert_eq!(with(&cli, &[("BUDGET_LOG", filter)], &["config", "check"]).await.code, Some(0), "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_settings_name_is_there_or_config_check_says_so() {
    let cli = Cli::new().await;
    let check = async |setting: &str| cli.run(&["config", "check", "--set", setting]).await;
    check("gateway.require_key=payment.charge").await.fails(78, &["payment.charge", "did you mean payments.charge?"]);
    for address in ["8080", ":8080", "localhost:70000"] {
        for setting in ["gateway.listen", "gateway.grpc_listen", "admin.listen"] {
            check(&format!("{setting}={address}")).await.fails(78, &[setting, "HOST:PORT"]);
        }
    }
    check("gateway.listen=0.0.0.0:8080").await.fails(78, &["gateway.listen", "gateway.tokens"]);
    check("kafka.brokers=h:99999").await.fails(78, &["kafka.brokers"]);
    check("store.url=mysql://x").await.fails(78, &["sqlite:///", "postgres"]);
    check("cache.url=redis://h:99999").await.fails(78, &["cache.url"]);
    check("retry.attempts=many").await.fails(78, &["a whole number from 0 to 4294967295 is wanted"]);
    check("history.keep=15M").await.fails(78, &["history.keep", "months", "15m"]);
    check("app.checkout_patience=1M").await.fails(78, &["app.checkout_patience", "months"]);
    for (name, text, parts) in [
        (
            "bind",
            "[[bind]]\ntype = \"x\"\nservice = \"balance\"\n",
            ["no service \"balance\"", "did you mean balances?"],
        ),
        (
            "source",
            "[[bind]]\nsource = \"kafka\"\ntype = \"x\"\nservice = \"balances\"\n",
            ["no source \"kafka\"", "embedded"],
        ),
        ("sink", "[[publish]]\ntype = \"x\"\nsink = \"kafka\"\ntopic = \"t\"\n", ["no sink \"kafka\"", "none"]),
        ("cron", "[[cron]]\nservice = \"balances\"\nname = \"close\"\n", ["close", "no such schedule"]),
        ("need", "[[dependency]]\nname = \"payment_provide\"\n", ["payment_provide", "did you mean payment_provider?"]),
    ] {
        let file = format!("{name}.toml");
        cli.file(&file, text);
        cli.run(&["config", "check", "--config", &file]).await.fails(78, &parts);
    }
    cli.run(&["dlq:replay", "--wait", "1M"]).await.fails(64, &["months", "1m"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_input_is_instead_is_said_by_name() {
    let cli = Cli::new().await;
    let wide: Vec<u8> = format!("\u{feff}{POSTINGS}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    cli.file("utf16.csv", wide);
    cli.file("semi.csv", "account;amount;currency;at\nshop;12,34;EUR;2026-01-31\n");
    cli.file("array.json", r#"[{"account":"a","amount":1,"currency":"EUR","at":"2026-01-31"}]"#);
    cli.file("f.csv.gz", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    for (file, parts) in [
        ("utf16.csv", ["UTF-16", "iconv"]),
        ("semi.csv", ["semicolons", "mlr"]),
        ("array.json", ["JSON array", "jq -c '.[]'"]),
        ("f.csv.gz", ["gzip", "zcat f.csv.gz | budget-manager import -"]),
    ] {
        cli.run(&["import", "--service", "transactions", file]).await.fails(1, &parts);
    }
    for (file, text) in [("head.csv", "account,amount,currency,at\n"), ("blank.csv", "\n\n")] {
        cli.file(file, text);
        cli.json(&["import", "--service", "transactions", file]).await.ends(3);
    }
    for (folder, line) in [("jan", "a,350,EUR,2026-01-05"), ("feb", "b,1,EUR,2026-02-05")] {
        std::fs::create_dir(cli.place.folder.join(folder)).unwrap();
        cli.file(&format!("{folder}/s.csv"), format!("account,amount,currency,at\n{line}\n"));
    }
    cli.json(&["import", "--service", "transactions", "jan/s.csv"]).await.ends(0);
    let other = cli.run(&["import", "--service", "transactions", "feb/s.csv"]).await;
    other.fails(1, &["another file of the same name", "--source"]);
    let named = ["import", "--service", "transactions", "feb/s.csv", "--source", "february"];
    assert_eq!(cli.json(&named).await.ends(0)["imported"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_to_be_installed_runs_without_its_symbols_and_names_them() {
    let cli = Cli::new().await;
    let (whole, to) = (&cli.place.binary, cli.place.folder.join("parted"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/split-symbols");
    let parted = tokio::process::Command::new(script).arg(whole).arg(&to).status().await.unwrap();
    assert!(parted.success());
    let said = tokio::process::Command::new(&to).arg("--version").output().await.unwrap();
    assert!(said.status.success() && said.stdout.starts_with(b"budget-manager "), "{said:?}");
    let bytes = std::fs::read(&to).unwrap();
    assert!(bytes.windows(12).any(|name| name == b"parted.debug"), "it does not name its symbols");
    assert!(!bytes.windows(12).any(|name| name == b".debug_line\0"), "it has its lines still");
    assert!(cli.place.folder.join("parted.debug").is_file());
    assert!(std::fs::metadata(&to).unwrap().len() < std::fs::metadata(whole).unwrap().len());
}
