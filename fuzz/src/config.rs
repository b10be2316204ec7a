//! receiver.toml and agent.toml: what is valid is shown as something that means the same.

use blockferry::agent::config::AgentConfig;
use blockferry::serve::config::ReceiverConfig;

/// First byte: even for the receiver's, odd for the agent's.
pub fn run(data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if first % 2 == 0 { receiver(text) } else { agent(text) }
}

fn receiver(text: &str) {
    if let Ok(config) = ReceiverConfig::parse(text, "receiver.toml") {
        config.warnings();
        let shown = config.show().expect("what is valid can be shown");
        assert_eq!(ReceiverConfig::parse(&shown, "shown").unwrap_or_else(|error| panic!("{}\n{shown}", error.chain())), config);
    }
}

fn agent(text: &str) {
    let parse = |text: &str| AgentConfig::parse(&[("agent.toml".to_owned(), text.to_owned())]);
    if let Ok(config) = parse(text) {
        let shown = config.show().expect("what is valid can be shown");
        let again = parse(&shown).unwrap_or_else(|error| panic!("{}\n{shown}", error.chain()));
        assert_eq!(again.show().expect("it can be shown"), shown);
    }
}
