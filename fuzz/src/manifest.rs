//! A manifest file that anything may have happened to: what is read of it is what it says, or an error.

use super::bytes::Bytes;
use super::sim::Store;
use blockferry::digest::{Algorithm, Hasher};
use blockferry::extent::ExtentIndex;
use blockferry::format::codec::crc;
use blockferry::state::MANIFEST;
use blockferry::state::manifest::{Damage, Draft, Manifest};
use std::sync::Arc;

/// Bytes of the header that its CRC covers; the CRC follows.
const COVERED: usize = 108;
/// A manifest may be of an exbibyte; the fuzzer's time is better spent on small ones.
const PAGES_MAX: u64 = 256;

/// First byte: odd, and the header's CRC is made right; the rest is the file.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let mut file = bytes.0.to_vec();
    if how % 2 == 1 && file.len() >= COVERED + 4 {
        let check = crc(&file[..COVERED]).to_le_bytes();
        file[COVERED..COVERED + 4].copy_from_slice(&check);
    }
    let store = Store::default();
    store.put(MANIFEST, Arc::new(file));
    let hasher = Hasher::new(if how & 2 == 0 { Algorithm::Xxh3 } else { Algorithm::Blake3 }, &[7; 192]);
    for damage in [Damage::Unknown, Damage::Refuse] {
        let Ok(Some(mut manifest)) = Manifest::open(&store, MANIFEST, &hasher, damage) else { return };
        if manifest.layout().pages > PAGES_MAX {
            return;
        }
        let about = *manifest.about();
        let extents = about.geometry.extents();
        let checked = manifest.check();
        assert!(damage == Damage::Refuse || checked.is_ok() || about.sealed, "a hint has no damage");
        for extent in (0..extents).step_by((extents as usize / 40).max(1)) {
            let _ = manifest.entry(ExtentIndex(extent)).map(|entry| entry.digest);
        }
        let Ok(mut draft) = Draft::new(&store, manifest) else { continue };
        let touched = bytes.u16() as u64 % extents;
        if draft.set_zeros(touched..(touched + 3).min(extents)).is_ok() {
            let _ = draft.forget([ExtentIndex(touched)].into_iter());
            let _ = draft.root();
        }
    }
}
