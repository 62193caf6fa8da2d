//! Identifies callers by bearer tokens, whose hashes are in a file; without it, on loopback, everybody is tenant
//! `default`.
//! In: the header `Authorization`. Out: tenant, principal and roles, or the problem.

use std::fs::{File, Metadata};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use perkey::Millis;
use perkey::unstable::clock::{Clock, Stopwatch};
use perkey::unstable::metrics::Metrics;
use sha2::{Digest, Sha256};
use tracing::{error, info};

use super::problem::{Kind, Problem};

/// The tenant of a process that asks for no tokens.
pub const DEFAULT_TENANT: &str = "default";

/// The longest time for which a change of the file goes unnoticed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The time for which known tokens still count after the file is gone or cannot be trusted: writing it anew takes a
/// moment, and removing it is meant to have an effect.
const GRACE: Duration = Duration::from_secs(10);

/// The most characters of a tenant's and a principal's name.
const NAME_BYTES_MAX: usize = 32;

/// The permissions of a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read data.
    Read,
    /// Run operations.
    Write,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The role's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == word);
        found.ok_or_else(|| format!("there is no role {word:?}; there are read and write"))
    }
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant whose data it sees.
    pub tenant: String,
    /// The principal within the tenant: keys are its own.
    pub principal: String,
    /// The roles of the principal.
    pub roles: Vec<Role>,
}

impl Caller {
    /// Checks that the caller has this role.
    pub fn check(&self, role: Role) -> Result<(), Problem> {
        if self.roles.contains(&role) {
            return Ok(());
        }
        Err(Problem::new(Kind::Forbidden, format!("the token lacks the role {}", role.as_str())))
    }
}

/// The known tokens.
#[derive(Debug)]
pub struct Auth {
    /// `None` if no tokens are required.
    tokens: Option<Tokens>,
}

#[derive(Debug)]
struct Tokens {
    file: PathBuf,
    state: Mutex<State>,
    metrics: OnceLock<Arc<Metrics>>,
}

#[derive(Debug)]
struct State {
    known: Arc<[Token]>,
    version: Option<Version>,
    looked: Stopwatch,
    wrong: Option<Wrong>,
}

/// A problem of the file.
#[derive(Debug)]
struct Wrong {
    /// The time of the clock, for people.
    since: Millis,
    watch: Stopwatch,
    problem: String,
}

/// Time of change, length, identity and permissions of the file: if any of these differs, it is read again.
type Version = (SystemTime, u64, u64, u32);

/// The contents of a file of tokens.
struct Lines {
    good: Vec<Token>,
    /// The problems of the other lines.
    bad: Vec<String>,
    version: Option<Version>,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 hash of the token.
    pub hash: [u8; 32],
    /// The caller that it belongs to.
    pub caller: Caller,
}

impl Auth {
    /// Opens this file of tokens; an empty path means no file, which is allowed only for addresses of this machine
    /// alone.
    pub fn open(file: &str, listens: &[SocketAddr]) -> Result<Self, String> {
        if !file.is_empty() {
            let file = PathBuf::from(file);
            // A start is watched: problems are reported to the person who starts it.
            let Lines { good, bad, version } = read(&file)?;
            if !bad.is_empty() {
                return Err(bad.join("; "));
            }
            let state = State { known: good.into(), version, looked: Stopwatch::start(), wrong: None };
            return Ok(Self { tokens: Some(Tokens { file, state: Mutex::new(state), metrics: OnceLock::new() }) });
        }
        match listens.iter().find(|address| !address.ip().is_loopback()) {
            None => Ok(Self { tokens: None }),
            Some(address) => Err(format!(
                "gateway: {address} can be reached from outside, and no tokens are asked for: name a file with \
                 gateway.tokens (`budget-manager token:new` writes it), or listen on 127.0.0.1"
            )),
        }
    }

    /// Sets the metrics that tell since when the file is wrong.
    pub fn tell(&self, metrics: Arc<Metrics>) {
        if let Some(tokens) = &self.tokens {
            // Set once, at the start.
            drop(tokens.metrics.set(metrics));
        }
    }

    /// Returns whether no tokens are required.
    pub fn is_open(&self) -> bool {
        self.tokens.is_none()
    }

    /// The caller that sends a request with these values of the header `Authorization`. Only one value is allowed: a
    /// reader of the first of two and a reader of the last would see different callers.
    pub fn caller<'a>(&self, authorization: impl IntoIterator<Item = &'a [u8]>) -> Result<Caller, Problem> {
        let mut values = authorization.into_iter();
        let (authorization, other) = (values.next(), values.next());
        if other.is_some() {
            return Err(Problem::new(Kind::Unauthenticated, "Authorization came twice: a request has one token"));
        }
        let Some(tokens) = &self.tokens else {
            let (tenant, principal) = (DEFAULT_TENANT.to_owned(), "anybody".to_owned());
            return Ok(Caller { tenant, principal, roles: Role::ALL.to_vec() });
        };
        let unknown = |detail: &str| Problem::new(Kind::Unauthenticated, detail);
        let header = authorization.ok_or_else(|| unknown("no token came: Authorization: Bearer TOKEN"))?;
        let token = bearer(header).ok_or_else(|| unknown("Authorization is not of the form: Bearer TOKEN"))?;
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        // All tokens are compared, each in full: the time tells nothing.
        for token in tokens.known().iter() {
            if is_same(&token.hash, &hash) {
                found = Some(token.caller.clone());
            }
        }
        found.ok_or_else(|| unknown("the token is not known here"))
    }
}

impl Tokens {
    /// The tokens of the file as it is now: its good lines; none if it has been gone, or not trusted, for a while.
    fn known(&self) -> Arc<[Token]> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_AGAIN {
            state.looked = Stopwatch::start();
            self.look(&mut state, GRACE);
        }
        Arc::clone(&state.known)
    }

    fn look(&self, state: &mut State, grace: Duration) {
        let found = version(&self.file);
        if found.is_some() && found == state.version {
            return;
        }
        let problem = match read(&self.file) {
            Ok(Lines { good, bad, version }) => {
                info!(tokens = good.len(), "the file of tokens was read again");
                (state.known, state.version) = (good.into(), version);
                (!bad.is_empty()).then(|| bad.join("; "))
            }
            Err(problem) => {
                state.version = None;
                if state.wrong.as_ref().is_some_and(|wrong| wrong.watch.elapsed() >= grace) && !state.known.is_empty() {
                    error!(%problem, "the file of tokens is still not there: no token is known any more");
                    state.known = Arc::default();
                }
                Some(problem)
            }
        };
        self.notice(state, problem);
    }

    /// Reports a problem once, and the time since which there is one.
    fn notice(&self, state: &mut State, problem: Option<String>) {
        match (&mut state.wrong, problem) {
            (Some(wrong), Some(problem)) if wrong.problem == problem => {}
            (wrong, Some(problem)) => {
                error!(%problem, "the file of tokens is wrong: its other lines count; without it no token soon");
                let (since, watch) = (Clock::system().now(), Stopwatch::start());
                match wrong {
                    Some(wrong) => wrong.problem = problem,
                    none => *none = Some(Wrong { since, watch, problem }),
                }
            }
            (wrong, None) => *wrong = None,
        }
        if let Some(metrics) = self.metrics.get() {
            metrics.set_tokens_wrong_since(state.wrong.as_ref().map(|wrong| wrong.since));
        }
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let differ = one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b));
    std::hint::black_box(differ) == 0
}

fn version(file: &Path) -> Option<Version> {
    version_of(&std::fs::metadata(file).ok()?)
}

fn version_of(found: &Metadata) -> Option<Version> {
    Some((found.modified().ok()?, found.len(), found.ino(), found.mode()))
}

fn read(path: &Path) -> Result<Lines, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| format!("gateway.tokens: cannot read {shown}: {error}");
    let link = std::fs::symlink_metadata(path).map_err(failed)?;
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    // Secrets of Kubernetes are links: their owner counts, as for a file.
    believable(&link, &found).map_err(|why| format!("gateway.tokens: {shown} is not believed: {why}"))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    let mut lines = Lines { good: Vec::new(), bad: Vec::new(), version: version_of(&found) };
    // Some editors begin a file with a byte order mark.
    let all = text.strip_prefix('\u{feff}').unwrap_or(&text).lines().enumerate();
    for (no, line) in all.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
        match line.parse() {
            Ok(token) => lines.good.push(token),
            Err(why) => lines.bad.push(format!("gateway.tokens: {shown}:{}: {why}", no + 1)),
        }
    }
    Ok(lines)
}

/// Checks that nobody but this user and the super-user can have written it.
fn believable(link: &Metadata, file: &Metadata) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    let theirs = [link, file].into_iter().find(|found| found.uid() != me && found.uid() != 0);
    match (theirs, file.mode() & 0o777) {
        _ if !file.is_file() => Err("it is not a file".to_owned()),
        (Some(found), _) => Err(format!("it belongs to user {}, this process runs as {me}", found.uid())),
        (None, mode) if mode & 0o022 != 0 => {
            Err(format!("others than its owner may write it (mode {mode:o}): chmod 600 it"))
        }
        (None, _) => Ok(()),
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [hash, tenant, principal, roles] = words[..] else {
            return Err("a line is: SHA-256 of the token, tenant, principal, roles with commas between".to_owned());
        };
        let mut bytes = [0; 32];
        let digits = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (at, byte) in bytes.iter_mut().enumerate().filter(|_| digits) {
            *byte = u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).map_err(|error| error.to_string())?;
        }
        if !digits {
            return Err("the hash is not 64 hexadecimal digits".to_owned());
        }
        let roles = roles.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let (tenant, principal) = (name(tenant)?, name(principal)?);
        Ok(Self { hash: bytes, caller: Caller { tenant, principal, roles } })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Caller { tenant, principal, roles } = &self.caller;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        let roles: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
        write!(f, " {tenant} {principal} {}", roles.join(","))
    }
}

/// A name of a tenant or a principal: it is the prefix of the names of a tenant's entities.
pub fn name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(fits) {
        return Err(format!(
            "{text:?} is not a name: 1 to {NAME_BYTES_MAX} lower-case letters, digits, dots, dashes and underscores"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: &str, tenant: &str, roles: &[Role]) -> Token {
        let caller = Caller { tenant: tenant.to_owned(), principal: "ann".to_owned(), roles: roles.to_vec() };
        Token { hash: Sha256::digest(secret).into(), caller }
    }

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let known = token("secret", "acme", &[Role::Read]);
        // As an editor on Windows leaves it.
        std::fs::write(file.path(), format!("\u{feff}# tokens\r\n\r\n{known}\r\n")).unwrap();
        let listens = ["0.0.0.0:1".parse().unwrap()];
        let auth = Auth::open(file.path().to_str().unwrap(), &listens).unwrap();
        assert_eq!(auth.caller(Some(&b"Bearer secret"[..])), Ok(known.caller.clone()));
        for header in [None, Some(&b"Bearer other"[..]), Some(b"Basic secret"), Some(b"Bearer"), Some(b"Bearer  ")] {
            assert_eq!(auth.caller(header).unwrap_err().kind, Kind::Unauthenticated, "{header:?}");
        }
        let twice = auth.caller([&b"Bearer secret"[..], b"Bearer secret"]).unwrap_err();
        assert!(twice.kind == Kind::Unauthenticated && twice.detail.contains("twice"), "{twice:?}");
        assert!(known.caller.check(Role::Read).is_ok());
        assert_eq!(known.caller.check(Role::Write).unwrap_err().kind, Kind::Forbidden);
    }

    /// The number of the file's tokens that count after another look, with this grace period.
    fn counts(auth: &Auth, grace: Duration) -> usize {
        let tokens = auth.tokens.as_ref().unwrap();
        let mut state = tokens.state.lock().unwrap();
        tokens.look(&mut state, grace);
        state.known.len()
    }

    fn gauge(metrics: &Metrics) -> bool {
        let text = metrics.encode();
        let line = text.lines().find(|line| line.starts_with("gateway_tokens_wrong_since_seconds ")).unwrap();
        line != "gateway_tokens_wrong_since_seconds 0"
    }

    #[test]
    fn a_token_that_was_taken_out_counts_no_more_whatever_else_the_file_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let (ann, bob) = (token("ann", "acme", &[Role::Read]), token("bob", "acme", &[Role::Read]));
        std::fs::write(&path, format!("{ann}\n{bob}\n")).unwrap();
        let (auth, metrics) = (Auth::open(path.to_str().unwrap(), &[]).unwrap(), Metrics::new());
        auth.tell(Arc::clone(&metrics));
        let grace = Duration::from_secs(3_600);
        assert_eq!(counts(&auth, grace), 2);
        std::fs::write(&path, format!("{ann}\nnonsense\n")).unwrap();
        assert_eq!((counts(&auth, grace), gauge(&metrics)), (1, true), "the line that is good counts, alone");
        assert_eq!(auth.caller(Some(&b"Bearer bob"[..])).unwrap_err().kind, Kind::Unauthenticated);
        // Anybody who may write it, or put another in its place, could name any tenant.
        let wide = |mode| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::fs::write(&path, format!("{ann}\n{bob}\n")).unwrap();
        wide(0o660);
        assert_eq!(
            (counts(&auth, grace), counts(&auth, Duration::ZERO)),
            (1, 0),
            "not what is new in it, and soon nothing"
        );
        assert!(Auth::open(path.to_str().unwrap(), &[]).unwrap_err().contains("chmod 600"));
        wide(0o600);
        assert_eq!((counts(&auth, grace), gauge(&metrics)), (2, false));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((counts(&auth, grace), gauge(&metrics)), (2, true), "an editor may be writing it");
        assert_eq!(counts(&auth, Duration::ZERO), 0, "it was taken away");
        // As in secrets of Kubernetes: a link of one's own.
        let target = folder.path().join("target");
        std::fs::write(&target, format!("{ann}\n")).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert_eq!((counts(&auth, grace), gauge(&metrics)), (1, false));
    }

    #[test]
    fn without_tokens_only_loopback_is_served() {
        let loopback = ["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()];
        let caller = Auth::open("", &loopback).unwrap().caller(None).unwrap();
        assert_eq!((caller.tenant.as_str(), caller.roles.len()), ("default", 2));
        let outside = Auth::open("", &["0.0.0.0:1".parse().unwrap()]).unwrap_err();
        assert!(outside.contains("gateway.tokens") && outside.contains("0.0.0.0:1"), "{outside}");
    }

    #[test]
    fn a_line_that_makes_no_sense_is_told_with_its_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for line in ["abc", "zz t p read", "aa Acme ann read", "aa acme ann root"] {
            let line = line.replacen("aa", &"a".repeat(64), 1);
            std::fs::write(file.path(), format!("\n{line}\n")).unwrap();
            let problem = Auth::open(file.path().to_str().unwrap(), &[]).unwrap_err();
            assert!(problem.contains(":2: "), "{problem}");
        }
    }
}
