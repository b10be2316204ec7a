//! The ways to tell somebody something: a program, a web server, the local mail.

use super::message::Message;
use crate::agent::config::NotifyEntry;
use crate::error::{Context, Error, Kind, Result};
use crate::limits::{HOOK_OUTPUT_BYTES, HOOK_STOP_GRACE, NOTIFY_ANSWER_BYTES, NOTIFY_TIMEOUT};
use crate::program::{self, Call, How};
use std::path::Path;
use std::sync::Arc;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// What tells one way from another: what waits for it finds it again after the configuration was read anew.
pub fn key(entry: &NotifyEntry) -> String {
    match (&entry.exec, &entry.webhook, &entry.mail) {
        (Some(exec), _, _) => format!("exec {}", shell_words::join(exec)),
        (_, Some(url), _) => format!("webhook {url}"),
        (_, _, Some(address)) => format!("mail {address}"),
        (None, None, None) => String::new(),
    }
}

/// What the log calls it. The path of a URL is often a password: it is left out.
pub fn name(entry: &NotifyEntry) -> String {
    match &entry.webhook {
        Some(url) => format!("webhook {}", host_of(url)),
        None => key(entry),
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

/// Sends it; bounded by [`NOTIFY_TIMEOUT`].
pub fn send(entry: &NotifyEntry, message: &Message<'_>) -> Result<()> {
    match (&entry.exec, &entry.webhook, &entry.mail) {
        (Some(exec), _, _) => call(exec, message),
        (_, Some(url), _) => post(url, message),
        (_, _, Some(address)) => mail(address, message),
        (None, None, None) => Ok(()),
    }
}

/// Runs a program of the administrator: what there is to tell is in its environment, and as JSON on its input.
fn call(exec: &[String], message: &Message<'_>) -> Result<()> {
    let Some((program, arguments)) = exec.split_first() else { return Ok(()) };
    let event = serde_json::to_value(message.what.what).ok();
    let input = format!("{}\n", message.json());
    let call = Call::new(Path::new(program), arguments, NOTIFY_TIMEOUT, HOOK_OUTPUT_BYTES)
        .env("BLOCKFERRY_EVENT", event.as_ref().and_then(|event| event.as_str()).unwrap_or_default())
        .env("BLOCKFERRY_JOB", message.job)
        .env("BLOCKFERRY_HOST", &message.host)
        .env("BLOCKFERRY_RUN_ID", message.what.run_id.as_deref().unwrap_or_default())
        .env("BLOCKFERRY_EXIT", message.what.exit.map(|exit| exit.to_string()).unwrap_or_default())
        .env("BLOCKFERRY_COUNT", message.what.count.to_string())
        .env("BLOCKFERRY_SUBJECT", message.subject())
        .env("BLOCKFERRY_MESSAGE", &message.what.message);
    run(call, input.as_bytes())
}

/// Hands a mail to the sendmail of this host, which knows the rest of the way.
fn mail(address: &str, message: &Message<'_>) -> Result<()> {
    let missing = || Error::new(Kind::Failed, "there is no sendmail: install a mail server (postfix, dma, msmtp-mta, …)");
    let sendmail = program::find("sendmail").ok_or_else(missing)?;
    let text = message.mail(address);
    // -i: a line with a dot alone is no end.
    run(Call::new(&sendmail, ["-i", "-t"], NOTIFY_TIMEOUT, HOOK_OUTPUT_BYTES), text.as_bytes())
}

fn run<'a>(call: Call<'a>, input: &'a [u8]) -> Result<()> {
    let mut call = call.grace(HOOK_STOP_GRACE).input(input);
    let ended = call.run();
    let ended = ended.context(Kind::Failed, || format!("start `{}`", call.line()))?;
    let how = match ended.how {
        How::Exited(status) if status.success() => return Ok(()),
        How::Exited(status) => status.to_string(),
        How::TooLong { .. } | How::Stopped => format!("no end within {} s", NOTIFY_TIMEOUT.as_secs()),
    };
    Err(Error::because(Kind::Failed, format!("`{}` ({how})", call.line()), ended.words()))
}

/// Posts JSON. Certificates are proven against those that this host trusts; a redirection is no answer, since what it
/// would do to a POST is anybody's guess.
fn post(url: &str, message: &Message<'_>) -> Result<()> {
    let body = message.json().to_string();
    let sent = client(url)?.post(url).content_type("application/json").send(body.as_bytes());
    let answer = sent.map_err(|error| Error::because(Kind::Failed, format!("post to {}", host_of(url)), error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let mut body = answer.into_body();
    let said = body.with_config().limit(NOTIFY_ANSWER_BYTES).lossy_utf8(true).read_to_string().unwrap_or_default();
    let said = program::words_of(said.as_bytes());
    Err(Error::because(
        Kind::Failed,
        format!("{} answered {status}", host_of(url)),
        if said.is_empty() { "without a word".into() } else { said },
    ))
}

fn client(url: &str) -> Result<Agent> {
    let mut config = Agent::config_builder()
        .timeout_global(Some(NOTIFY_TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("blockferry/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("https:") {
        let trusted = trusted()?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(trusted)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        config = config.tls_config(tls.build());
    }
    Ok(config.build().new_agent())
}

/// The authorities that this host trusts; `SSL_CERT_FILE` names others.
fn trusted() -> Result<Vec<Certificate<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    let all: Vec<_> = found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    if all.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(Error::new(Kind::Failed, format!("this host trusts no certificates (package ca-certificates){why}")));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_shows_no_password_of_a_url() {
        let entry = |url: &str| NotifyEntry { on: Vec::new(), exec: None, webhook: Some(url.into()), mail: None };
        assert_eq!(name(&entry("https://user:secret@chat.example:8443/hooks/secret?x=secret")), "webhook chat.example:8443");
        assert_ne!(key(&entry("https://a/1")), key(&entry("https://a/2")));
    }
}
