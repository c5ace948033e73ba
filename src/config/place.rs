//! Values that say where something is: `device`, `meta-disk`, `address`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::agent::protocol::FrontEnd;

use super::diagnostic::{AddressFault, DeviceFault};
use super::schema::Unit;

/// Minors are 20 bits wide in the kernel.
pub const MAX_MINOR: u32 = (1 << 20) - 1;

/// Longest path of a Unix socket (`sun_path` without its final zero byte).
pub const MAX_SOCKET_PATH: usize = 107;

/// Port of an `nbd://` URI that names none.
const NBD_PORT: u16 = 10809;

/// Where a volume's metadata is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaDisk {
    /// At the end of the data device.
    Internal,
    /// On a device or file of its own, from its start. `indexed` when it was written as `DEV[0]`,
    /// the first 128 MiB slot of a device.
    External { path: PathBuf, indexed: bool },
}

/// `device`: `/dev/ublkbN`, `/dev/drbdN`, `minor N`, `/dev/drbd_NAME minor N`,
/// `nbd+unix:///EXPORT?socket=PATH`, `nbd://IP:PORT/EXPORT`.
pub fn parse_device(words: &[&str]) -> Result<FrontEnd, DeviceFault> {
    match words {
        ["minor", number] => Ok(FrontEnd::Ublk {
            minor: parse_minor(number)?,
        }),
        [uri] if uri.starts_with("nbd") => parse_nbd(uri),
        [path] => Ok(FrontEnd::Ublk {
            minor: minor_of(path)?.ok_or(DeviceFault::Minor)?,
        }),
        [path, "minor", number] => {
            let minor = parse_minor(number)?;
            match minor_of(path)? {
                Some(other) if other != minor => Err(DeviceFault::MinorMismatch),
                _ => Ok(FrontEnd::Ublk { minor }),
            }
        }
        _ => Err(DeviceFault::Form),
    }
}

fn parse_minor(text: &str) -> Result<u32, DeviceFault> {
    // `parse` alone would take a sign.
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DeviceFault::Minor);
    }
    text.parse()
        .ok()
        .filter(|minor| *minor <= MAX_MINOR)
        .ok_or(DeviceFault::Minor)
}

/// The minor in the name of a device; `None` for `/dev/drbd_NAME`, which has none.
fn minor_of(path: &str) -> Result<Option<u32>, DeviceFault> {
    if let Some(name) = path.strip_prefix("/dev/drbd_") {
        return if name.is_empty() {
            Err(DeviceFault::Form)
        } else {
            Ok(None)
        };
    }
    let number = path
        .strip_prefix("/dev/ublkb")
        .or_else(|| path.strip_prefix("/dev/drbd"))
        .ok_or(DeviceFault::Form)?;
    parse_minor(number).map(Some)
}

fn parse_nbd(uri: &str) -> Result<FrontEnd, DeviceFault> {
    let export_name = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.chars().all(plain) {
            Ok(name.to_owned())
        } else {
            Err(DeviceFault::Export)
        }
    };
    if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
        let (export, path) = rest.split_once("?socket=").ok_or(DeviceFault::Socket)?;
        if path.is_empty() {
            return Err(DeviceFault::Socket);
        }
        if !path.starts_with('/') {
            return Err(DeviceFault::SocketRelative);
        }
        return Ok(FrontEnd::NbdUnix {
            path: path.to_owned(),
            export: export_name(export)?,
        });
    }
    let rest = uri.strip_prefix("nbd://").ok_or(DeviceFault::Form)?;
    let (address, export) = rest.split_once('/').unwrap_or((rest, ""));
    let address = address
        .parse::<SocketAddr>()
        .ok()
        .or_else(|| {
            let ip = address
                .strip_prefix('[')
                .and_then(|ip| ip.strip_suffix(']'));
            let ip: IpAddr = ip.unwrap_or(address).parse().ok()?;
            Some(SocketAddr::new(ip, NBD_PORT))
        })
        .filter(|address| address.port() != 0)
        .ok_or(DeviceFault::NbdAddress)?;
    Ok(FrontEnd::NbdTcp {
        address: address.to_string(),
        export: export_name(export)?,
    })
}

/// A front end as `device` is written.
pub fn write_device(front: &FrontEnd) -> String {
    match front {
        FrontEnd::Ublk { minor } => format!("/dev/ublkb{minor}"),
        FrontEnd::NbdUnix { path, export } => format!("nbd+unix:///{export}?socket={path}"),
        FrontEnd::NbdTcp { address, export } => format!("nbd://{address}/{export}"),
    }
}

/// What a `meta-disk` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaPlace {
    Internal,
    /// A path and the number in brackets.
    Device(String, Option<u64>),
    /// Nothing of the kind.
    Bad,
}

/// `internal`, `DEV`, `DEV[N]`, `DEV [N]`.
pub fn parse_meta(words: &[&str]) -> MetaPlace {
    let (path, index) = match words {
        ["internal"] => return MetaPlace::Internal,
        [path, index] => (*path, Some(*index)),
        [word] => match word
            .strip_suffix(']')
            .and_then(|rest| rest.rsplit_once('['))
        {
            Some((path, _)) => (path, word.get(path.len()..)),
            None => (*word, None),
        },
        _ => return MetaPlace::Bad,
    };
    let number = |text: &str| {
        let digits = text.strip_prefix('[')?.strip_suffix(']')?;
        super::options::parse_number(digits, Unit::Count).ok()
    };
    match index.map(number) {
        _ if path.is_empty() => MetaPlace::Bad,
        None => MetaPlace::Device(path.to_owned(), None),
        Some(Some(index)) => MetaPlace::Device(path.to_owned(), Some(index)),
        Some(None) => MetaPlace::Bad,
    }
}

/// `meta-disk` as it is written.
pub fn write_meta(meta: &MetaDisk) -> String {
    match meta {
        MetaDisk::Internal => "internal".to_owned(),
        MetaDisk::External { path, indexed } => {
            let index = if *indexed { "[0]" } else { "" };
            super::lexer::quote(&format!("{}{index}", path.display()))
        }
    }
}

/// `IP:PORT` of a replication address, with the family written before it, if any.
pub fn parse_address(family: Option<&str>, text: &str) -> Result<SocketAddr, AddressFault> {
    let address: SocketAddr = match text.parse() {
        Ok(address) => address,
        Err(_) => return Err(address_fault(text)),
    };
    match (family, address.ip()) {
        (Some("ipv4"), IpAddr::V6(_)) | (Some("ipv6"), IpAddr::V4(_)) => {
            return Err(AddressFault::Family);
        }
        _ => {}
    }
    if address.port() == 0 {
        Err(AddressFault::Port)
    } else if address.ip().is_unspecified() {
        Err(AddressFault::Unspecified)
    } else if address.ip().is_multicast() || address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Err(AddressFault::NotUnicast)
    } else {
        Ok(address)
    }
}

/// Which half of a text is wrong.
fn address_fault(text: &str) -> AddressFault {
    if text.parse::<IpAddr>().is_ok() {
        return AddressFault::NoPort;
    }
    let Some((ip, _)) = text.rsplit_once(':') else {
        return AddressFault::Ip;
    };
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let fine = match bare {
        Some(ip) => ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()),
        None => ip.parse::<Ipv4Addr>().is_ok(),
    };
    if fine {
        AddressFault::Port
    } else {
        AddressFault::Ip
    }
}

/// The path without doubled slashes and `.`, for comparison.
pub fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_every_spelling() {
        let minor = |minor| Ok(FrontEnd::Ublk { minor });
        assert_eq!(parse_device(&["/dev/ublkb3"]), minor(3));
        assert_eq!(parse_device(&["/dev/drbd0"]), minor(0));
        assert_eq!(parse_device(&["minor", "7"]), minor(7));
        assert_eq!(parse_device(&["/dev/drbd_home", "minor", "7"]), minor(7));
        assert_eq!(parse_device(&["/dev/drbd7", "minor", "7"]), minor(7));
        let unix = FrontEnd::NbdUnix {
            path: "/run/x.nbd".to_owned(),
            export: "r0".to_owned(),
        };
        assert_eq!(
            parse_device(&["nbd+unix:///r0?socket=/run/x.nbd"]),
            Ok(unix)
        );
        let tcp = |address: &str, export: &str| FrontEnd::NbdTcp {
            address: address.to_owned(),
            export: export.to_owned(),
        };
        assert_eq!(
            parse_device(&["nbd://127.0.0.1:10810/r0"]),
            Ok(tcp("127.0.0.1:10810", "r0"))
        );
        assert_eq!(parse_device(&["nbd://[::1]/"]), Ok(tcp("[::1]:10809", "")));
    }

    #[test]
    fn bad_devices_say_what_is_wrong() {
        use DeviceFault as F;
        let cases: [(&[&str], F); 14] = [
            (&[], F::Form),
            (&["/dev/vdb"], F::Form),
            (&["/dev/ublkb"], F::Minor),
            (&["/dev/ublkb+1"], F::Minor),
            (&["/dev/ublkbx"], F::Minor),
            (&["minor", "1048576"], F::Minor),
            (&["/dev/drbd1", "minor", "2"], F::MinorMismatch),
            (&["/dev/drbd_x"], F::Minor),
            (&["/dev/drbd_", "minor", "2"], F::Form),
            (&["nbd+unix:///r0"], F::Socket),
            (&["nbd+unix:///r0?socket=run/x"], F::SocketRelative),
            (&["nbd+unix:///r%20?socket=/run/x"], F::Export),
            (&["nbd://localhost/r0"], F::NbdAddress),
            (&["nbd://127.0.0.1:0/r0"], F::NbdAddress),
        ];
        for (words, fault) in cases {
            assert_eq!(parse_device(words), Err(fault), "{words:?}");
        }
    }

    #[test]
    fn metadata_places() {
        let device = |index| MetaPlace::Device("/dev/sdb2".to_owned(), index);
        assert_eq!(parse_meta(&["internal"]), MetaPlace::Internal);
        assert_eq!(parse_meta(&["/dev/sdb2"]), device(None));
        assert_eq!(parse_meta(&["/dev/sdb2[0]"]), device(Some(0)));
        assert_eq!(parse_meta(&["/dev/sdb2", "[3]"]), device(Some(3)));
        for bad in [
            &["/dev/sdb2[x]"] as &[&str],
            &["[0]"],
            &["/dev/sdb2", "3"],
            &[],
            &["/dev/sdb2[]"],
        ] {
            assert_eq!(parse_meta(bad), MetaPlace::Bad, "{bad:?}");
        }
    }

    #[test]
    fn addresses_say_what_is_wrong() {
        use AddressFault as F;
        assert!(parse_address(None, "10.0.0.1:7789").is_ok());
        assert!(parse_address(Some("ipv6"), "[::1]:7789").is_ok());
        let cases = [
            (None, "172.25.137.:7789", F::Ip),
            (None, "10.0.0.1", F::NoPort),
            (None, "::1", F::NoPort),
            (None, "10.0.0.1:", F::Port),
            (None, "10.0.0.1:0", F::Port),
            (None, "10.0.0.1:65536", F::Port),
            (None, "alpha:7789", F::Ip),
            (None, "alpha", F::Ip),
            (Some("ipv6"), "10.0.0.1:7789", F::Family),
            (Some("ipv4"), "[::1]:7789", F::Family),
            (None, "0.0.0.0:7789", F::Unspecified),
            (None, "224.0.0.1:7789", F::NotUnicast),
            (None, "255.255.255.255:7789", F::NotUnicast),
        ];
        for (family, text, fault) in cases {
            assert_eq!(parse_address(family, text), Err(fault), "{text}");
        }
    }
}
