//! What bytes mean: on the wire, in the journal, in the manifest. No disk, no clock, no thread.
//!
//! One source file, one page in `docs/format/` and one golden file per version each. Everything is
//! little-endian. A header is believed only after its CRC32C, and only then is a length in it used.

pub mod codec;
pub mod journal;
pub mod lane;
pub mod manifest;
pub mod stream;
