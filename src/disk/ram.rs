//! A block device in memory: the test double that the behaviour suite holds to the same promises
//! as the real ones.

use super::{Action, Completion, Disk, Request};
use crate::error::Result;
use crate::limits::BLOCK_BYTES;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;

/// Every request is done at once; completions wait in a queue.
#[derive(Debug, Default)]
pub struct RamDisk {
    name: String,
    data: Vec<u8>,
    done: VecDeque<Completion>,
}

impl RamDisk {
    /// A device with this content.
    pub fn new(name: &str, data: Vec<u8>) -> RamDisk {
        RamDisk { name: name.to_owned(), data, done: VecDeque::new() }
    }

    /// Its content.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    fn run(&mut self, action: Action) -> (io::Result<usize>, Option<super::AlignedBuf>) {
        let end = self.data.len() as u64;
        let beyond = |offset: u64, bytes: u64| offset.checked_add(bytes).is_none_or(|stop| stop > end);
        match action {
            Action::Read(mut buffer, runs) => {
                if runs.iter().any(|run| beyond(run.offset, run.bytes as u64)) {
                    return (Err(io::ErrorKind::UnexpectedEof.into()), Some(buffer));
                }
                for run in &runs {
                    let from = run.offset as usize;
                    buffer[run.at..run.at + run.bytes].copy_from_slice(&self.data[from..from + run.bytes]);
                }
                (Ok(runs.iter().map(|run| run.bytes).sum()), Some(buffer))
            }
            Action::Write(buffer, runs) => {
                if runs.iter().any(|run| beyond(run.offset, run.bytes as u64)) {
                    return (Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)), Some(buffer));
                }
                for run in &runs {
                    let to = run.offset as usize;
                    self.data[to..to + run.bytes].copy_from_slice(&buffer[run.at..run.at + run.bytes]);
                }
                (Ok(runs.iter().map(|run| run.bytes).sum()), Some(buffer))
            }
            Action::Zero { offset, bytes } if beyond(offset, bytes) => (Err(io::Error::from_raw_os_error(nix::libc::EINVAL)), None),
            Action::Zero { offset, bytes } => {
                self.data[offset as usize..(offset + bytes) as usize].fill(0);
                (Ok(0), None)
            }
            Action::Flush => (Ok(0), None),
            Action::Receive(buffer, _) | Action::Transmit(buffer, _) => (Err(io::ErrorKind::Unsupported.into()), Some(buffer)),
        }
    }
}

impl Disk for RamDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    fn submit(&mut self, request: Request) -> Result<()> {
        let (result, buffer) = self.run(request.action);
        self.done.push_back(Completion { token: request.token, result, buffer });
        Ok(())
    }

    fn wait(&mut self) -> Result<Option<Completion>> {
        Ok(self.done.pop_front())
    }

    fn data_range(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        let zero = |block: &[u8]| crate::digest::is_zero(block);
        let blocks = || self.data.chunks(BLOCK_BYTES).enumerate().skip(from as usize / BLOCK_BYTES);
        let Some((first, _)) = blocks().find(|(_, block)| !zero(block)) else { return Ok(None) };
        let end = blocks().find(|(at, block)| *at > first && zero(block)).map_or(self.data.len(), |(at, _)| at * BLOCK_BYTES);
        Ok(Some((first * BLOCK_BYTES) as u64..end as u64))
    }

    fn resize(&mut self, bytes: u64) -> Result<()> {
        self.data.resize(bytes as usize, 0);
        Ok(())
    }
}
