//! The token of `pair invite`: text as it comes, and bodies whose check is right.

use super::bytes::Bytes;
use blockferry::format::codec::crc;
use blockferry::serve::pairing::Token;

/// First byte 0: the rest is the text. Else: a body.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    if bytes.u8() == 0 {
        return look(&String::from_utf8_lossy(bytes.0));
    }
    let body = bytes.0.iter().chain(&crc(bytes.0).to_le_bytes()).map(|byte| format!("{byte:02x}")).collect::<String>();
    look(&format!("blockferry-pair-1-{body}"));
}

fn look(text: &str) {
    if let Ok(token) = Token::read(text) {
        assert_eq!(Token::read(&token.write()).expect("what we write we read"), token);
    }
}
