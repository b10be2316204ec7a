//! The stream's decoder: bytes as they come, and frames whose checks are right and whose bodies are not.

use super::bytes::Bytes;
use blockferry::extent::Geometry;
use blockferry::format::lane::{Join, PieceHead};
use blockferry::format::stream::{self, Frame, FrameKind, HEADER_BYTES, Header};

/// Every kind of frame.
pub const KINDS: [FrameKind; 19] = [
    FrameKind::Hello,
    FrameKind::Welcome,
    FrameKind::Refuse,
    FrameKind::Survey,
    FrameKind::Have,
    FrameKind::HaveEnd,
    FrameKind::Begin,
    FrameKind::Data,
    FrameKind::Zero,
    FrameKind::Mark,
    FrameKind::End,
    FrameKind::Need,
    FrameKind::Ack,
    FrameKind::Abort,
    FrameKind::Seal,
    FrameKind::Pulse,
    FrameKind::Part,
    FrameKind::Lanes,
    FrameKind::Spread,
];

/// A frame of this kind with this body and checks that hold. Of a Data frame only the front may be checked.
pub fn frame(kind: FrameKind, body: &[u8], unchecked: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend_from_slice(body);
    let checked = if kind == FrameKind::Data { body.len().saturating_sub(unchecked) } else { body.len() };
    stream::write_header(&mut frame, kind, body.len(), checked);
    frame
}

/// First byte 0: the rest as it came, a greeting first if it looks like one. Else: frames with checks that hold.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    if bytes.u8() == 0 {
        let line = bytes.0.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if let Ok(line) = std::str::from_utf8(line) {
            let _ = stream::agree(line);
        }
        // What a further connection begins with has no length of its own to believe.
        let (join, head) = (bytes.0.first_chunk().map(Join::decode), bytes.0.first_chunk().map(PieceHead::decode));
        if let (Some(Ok(join)), Some(first)) = (join, bytes.0.first_chunk()) {
            assert_eq!(join.encode(), *first);
        }
        if let (Some(Ok(head)), Some(first)) = (head, bytes.0.first_chunk()) {
            assert_eq!(head.encode(), *first);
        }
        return walk(bytes.0);
    }
    while !bytes.is_empty() {
        let kind = KINDS[bytes.u8() as usize % KINDS.len()];
        let (unchecked, length) = (bytes.u8(), bytes.u16());
        walk(&frame(kind, bytes.take(length.into()), unchecked.into()));
    }
}

fn walk(mut bytes: &[u8]) {
    while let Ok(Some(header)) = stream::header(bytes) {
        let Some(body) = bytes.get(HEADER_BYTES..header.frame_bytes()) else { return };
        look(&header, body);
        bytes = &bytes[header.frame_bytes()..];
    }
}

fn look(header: &Header, body: &[u8]) {
    match stream::decode(header, body) {
        Ok(Frame::Data(data)) => {
            for (volume_bytes, extent_bytes) in [(1 << 20, 4096), ((1 << 30) + 512, 65536), (1 << 50, 4 << 20)] {
                let geometry = Geometry::new(volume_bytes, extent_bytes).expect("a geometry");
                if data.check(&geometry, header).is_ok() {
                    let sum: usize = data.lines().map(|line| line.plain_bytes(&geometry)).sum();
                    assert_eq!(sum, data.plain_bytes);
                    assert!(data.lines().all(|line| line.extent.0 < geometry.extents()));
                }
            }
        }
        Ok(Frame::Have(have)) => {
            let again = have.encode();
            assert_eq!(&again[HEADER_BYTES..], body);
        }
        Ok(Frame::Message(message)) => {
            let again = stream::encode(&message);
            let header = stream::header(&again).expect("our own").expect("whole");
            match stream::decode(&header, &again[HEADER_BYTES..]) {
                Ok(Frame::Message(same)) => assert_eq!(same, message),
                other => panic!("{message:?} does not come back: {other:?}"),
            }
        }
        Err(_) => {}
    }
}
