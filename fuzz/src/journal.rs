//! A journal that anything may have happened to, found beside a replica of generation 1: recovery completes it or
//! leaves the replica as it was.

use super::bytes::Bytes;
use super::session::{Speech, check, replicated, root_of};
use super::sim::{DEVICE, SimSite};
use super::stream::{KINDS, frame};
use blockferry::disk::ram::RamDisk;
use blockferry::format::journal::{ALIGN_BYTES, Chain, align};
use blockferry::format::stream::{self, HEADER_BYTES, Message, Seal};
use blockferry::receiver::{self, Site, Walk};
use blockferry::state::{JOURNAL, ReplicaRecord};
use std::sync::Arc;

/// First byte: even and the journal's header is right, odd and it is what the bytes say. Then frames.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (store, content) = replicated();
    let record = ReplicaRecord::load(&store).expect("a record").expect("a record");
    let how = bytes.u8();
    let mut file = receiver::belongs(&record).expect("a record with a geometry").encode().to_vec();
    let mut speech = Speech::new(content.clone());
    if how % 2 == 1 {
        let (at, with) = (usize::from(bytes.u8()) % 96, bytes.u8());
        file[at] ^= with;
        if how & 2 != 0 {
            let check = blockferry::format::codec::crc(&file[..92]).to_le_bytes();
            file[92..96].copy_from_slice(&check);
        }
        speech.honest &= with == 0;
    }
    let mut chain = Chain::default();
    let mut sealed = false;
    while !bytes.is_empty() && !sealed {
        let from = speech.said.len();
        match bytes.u8() % 8 {
            0..=2 => speech.data(&mut bytes),
            3 => speech.zeros(&mut bytes),
            4 => {
                let padded = align((ALIGN_BYTES + speech.said.len()) as u64) as usize - ALIGN_BYTES;
                speech.said.resize(padded, 0);
                continue;
            }
            5 => {
                let (kind, unchecked, length) = (KINDS[bytes.u8() as usize % KINDS.len()], bytes.u8(), bytes.u8());
                speech.said.extend(frame(kind, bytes.take(length.into()), unchecked.into()));
                speech.honest = false;
            }
            6 => {
                let length = bytes.u8();
                speech.said.extend_from_slice(bytes.take(length.into()));
                speech.honest &= length == 0;
                continue;
            }
            _ => {
                let lie = bytes.u8();
                let root = if lie == 1 { root_of(&content) } else { root_of(&speech.content) };
                let generation = record.generation + if lie == 2 { 2 } else { 1 };
                let seal = Seal { generation, root, frames: chain.frames + u64::from(lie == 3), chain: chain.value, source_time_ms: 5 };
                speech.say(&Message::Seal(seal));
                speech.honest &= !(1..=3).contains(&lie);
                sealed = true;
                continue;
            }
        }
        if let Ok(Some(header)) = stream::header(&speech.said[from..]) {
            chain.add(&header);
        }
    }
    file.extend_from_slice(&speech.said);
    if !bytes.is_empty() {
        // Cut off somewhere, as a crash leaves it.
        let length = file.len() - usize::from(bytes.u16()).min(file.len());
        speech.honest &= length == file.len();
        file.truncate(length);
    }
    walk(file.clone());
    store.put(JOURNAL, Arc::new(file));
    let mut site = SimSite(store.clone());
    let disk = site.open_disk(true).expect("it opens").expect("it is there");
    let found = receiver::recover(&site, disk).unwrap_or_else(|error| panic!("it cannot be recovered: {}", error.chain()));
    let device = store.content(DEVICE).expect("it is there");
    let volume = &device[..content.len()];
    if speech.honest && sealed {
        assert!(found == Some(2) && volume == speech.content, "a whole delta was not committed");
    }
    assert!(found == Some(2) || found == Some(1) && volume == content, "the replica is between two generations");
    check(&store);
}

/// Every frame of it is looked at, in its order.
fn walk(file: Vec<u8>) {
    let Ok((_, mut walk)) = Walk::open(Box::new(RamDisk::new("journal", file))) else { return };
    let mut last = walk.end();
    while let Ok(Some(header)) = walk.next_frame() {
        assert!(header.frame_bytes() >= HEADER_BYTES);
        if walk.frame(&header).is_err() {
            return;
        }
        walk.done(&header);
        assert!(walk.end() > last, "a walk goes forward");
        last = walk.end();
    }
}
