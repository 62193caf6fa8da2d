//! `token:new`: a bearer token for the front doors.
//! In: a tenant, a principal, roles. Out: the token, shown once; its hash, in the file of tokens.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use clap::{Args, Subcommand};
use perkey::Settings;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::append::append_line;
use super::cli::output::Out;
use super::cli::{Done, Ended, Failure};
use crate::gateway::auth::{Caller, Token, name};
use crate::gateway::key::fill;

/// The number of random bytes of a token.
const BYTES: usize = 32;

/// The prefix of a token, so that one that lies around is recognised.
const MARK: &str = "bm_";

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make one: it is shown once, its hash is added to the file of gateway.tokens
    New(TokenArgs),
}

/// The owner of the token.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// The tenant whose data it reaches
    #[arg(long)]
    pub tenant: String,
    /// The principal within the tenant: idempotency keys are its own
    #[arg(long)]
    pub principal: String,
    /// A role: read or write; may be repeated
    #[arg(long = "role", required = true)]
    pub roles: Vec<String>,
}

/// Makes a token.
pub fn new(settings: &Settings, asked: &TokenArgs, out: Out) -> Ended {
    let file = &settings.gateway.tokens;
    if file.is_empty() {
        let text = "name the file of tokens: gateway.tokens in the settings, or --set gateway.tokens=FILE";
        return Err(Failure::Usage(text.to_owned()));
    }
    let (tenant, principal) =
        (name(&asked.tenant).map_err(Failure::Usage)?, name(&asked.principal).map_err(Failure::Usage)?);
    let mut roles = Vec::new();
    for role in asked.roles.iter().map(|role| role.parse().map_err(Failure::Usage)) {
        let role = role?;
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    let mut random = [0; BYTES];
    fill(&mut random).map_err(|problem| Failure::Failed(problem.detail))?;
    let secret: String = MARK.chars().chain(random.iter().flat_map(|byte| hex(*byte))).collect();
    let token = Token { hash: Sha256::digest(&secret).into(), caller: Caller { tenant, principal, roles } };
    let cannot = |error: std::io::Error| Failure::Failed(format!("cannot write {file}: {error}"));
    // Before it is shown: a token that cannot be kept must not be shown.
    let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file).map_err(cannot)?;
    let Caller { tenant, principal, roles } = &token.caller;
    let roles: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    let shown = json!({ "token": secret, "tenant": tenant, "principal": principal, "roles": roles });
    // Before it is kept: a token that nobody has seen must not be known.
    out.hand_over(&shown, |_| secret.clone())?;
    append_line(&opened, &token.to_string()).map_err(|error| {
        Failure::Failed(format!("cannot write {file}: {error}; the token that was shown is not known: make another"))
    })?;
    Ok(Done::All)
}

fn hex(byte: u8) -> impl Iterator<Item = char> {
    [byte >> 4, byte & 15].into_iter().filter_map(|digit| char::from_digit(u32::from(digit), 16))
}

#[cfg(test)]
mod tests {
    use perkey::unstable::settings::GatewaySettings;

    use super::*;
    use crate::gateway::auth::{Auth, Role};
    use crate::operator::cli::output::Form;

    #[test]
    fn a_token_that_is_made_is_known_and_its_text_is_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens").display().to_string();
        let gateway = GatewaySettings { tokens: file.clone(), ..GatewaySettings::default() };
        let settings = Settings { gateway, ..Settings::default() };
        let asked = |tenant: &str, role: &str| TokenArgs {
            tenant: tenant.to_owned(),
            principal: "ann".to_owned(),
            roles: vec![role.to_owned(), role.to_owned()],
        };
        let out = Out::new(Form::Json);
        assert_eq!(new(&settings, &asked("acme", "read"), out).unwrap(), Done::All);
        assert_eq!(new(&settings, &asked("other", "write"), out).unwrap(), Done::All);
        assert!(new(&settings, &asked("Acme", "read"), out).is_err());
        assert!(new(&settings, &asked("acme", "root"), out).is_err());
        assert!(new(&Settings::default(), &asked("acme", "read"), out).is_err());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().count() == 2 && !text.contains(MARK), "{text}");
        let token: Token = text.lines().next().unwrap().parse().unwrap();
        assert_eq!((token.caller.tenant.as_str(), token.caller.roles), ("acme", vec![Role::Read]));
        assert!(Auth::open(&file, &[]).is_ok());
    }
}
