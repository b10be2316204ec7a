//! What SRC and DST mean: a path here, `HOST:PATH` as in rsync and scp, or `blockferry://HOST/REPLICA`.

use crate::error::{Context, Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A volume or replica as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Local(PathBuf),
    /// On another host, reached through the remote shell.
    Remote {
        /// What the remote shell is told: `host` or `user@host`.
        host: String,
        /// The path there.
        path: String,
    },
    /// A replica of a receiver daemon.
    Receiver {
        /// `HOST` or `HOST:PORT`.
        address: String,
        /// What the receiver calls it.
        replica: String,
    },
}

/// How a receiver's replica is written.
const SCHEME: &str = "blockferry://";

impl FromStr for Place {
    type Err = String;

    /// A colon before the first slash makes it remote; `./a:b` is a local file of that name.
    fn from_str(text: &str) -> Result<Place, String> {
        if let Some(rest) = text.strip_prefix(SCHEME) {
            let (address, replica) = rest.split_once('/').unwrap_or((rest, ""));
            return match (address, replica) {
                ("", _) => Err(format!("has no host behind {SCHEME}")),
                (_, "") => Err(format!("names no replica: {SCHEME}{address}/NAME")),
                _ => Ok(Place::Receiver { address: address.to_owned(), replica: replica.to_owned() }),
            };
        }
        let before_slash = text.split('/').next().unwrap_or_default();
        match before_slash.split_once(':') {
            _ if text.is_empty() => Err("is empty".to_owned()),
            None => Ok(Place::Local(text.into())),
            Some((host, _)) if host.is_empty() || host.starts_with('-') => Err("has no host before its colon".to_owned()),
            Some((host, _)) => match &text[host.len() + 1..] {
                "" => Err("has no path behind its colon".to_owned()),
                path => Ok(Place::Remote { host: host.to_owned(), path: path.to_owned() }),
            },
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Local(path) => path.display().fmt(f),
            Place::Remote { host, path } => write!(f, "{host}:{path}"),
            Place::Receiver { address, replica } => write!(f, "{SCHEME}{address}/{replica}"),
        }
    }
}

/// The path as one that does not depend on the working directory: links resolved where it exists,
/// else those of its folder.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    if let Ok(canonical) = path.canonicalize() {
        return Ok(canonical);
    }
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Usage, format!("{} names no file", path.display())))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().context(Kind::Usage, || format!("find the folder of {}", path.display()))?;
    Ok(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_the_first_slash_makes_it_remote() {
        let remote = |host: &str, path: &str| Place::Remote { host: host.into(), path: path.into() };
        assert_eq!("db1:/dev/vg/x".parse(), Ok(remote("db1", "/dev/vg/x")));
        assert_eq!("root@db1:rel/x".parse(), Ok(remote("root@db1", "rel/x")));
        assert_eq!("/dev/a:b".parse(), Ok(Place::Local("/dev/a:b".into())));
        assert_eq!("./a:b".parse(), Ok(Place::Local("./a:b".into())));
        let receiver = Place::Receiver { address: "dr1:99".into(), replica: "db".into() };
        assert_eq!("blockferry://dr1:99/db".parse(), Ok(receiver.clone()));
        assert_eq!(receiver.to_string(), "blockferry://dr1:99/db");
        assert!("blockferry://dr1".parse::<Place>().is_err() && "blockferry:///db".parse::<Place>().is_err());
        assert!("host:".parse::<Place>().is_err());
        assert!(":x".parse::<Place>().is_err());
        assert!("-oProxyCommand=x:y".parse::<Place>().is_err());
        assert!("".parse::<Place>().is_err());
    }
}
