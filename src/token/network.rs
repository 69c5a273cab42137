//! The networks from which a token may be used.

use serde::{Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Most networks of one token.
pub const MAX_NETWORKS: usize = 32;

/// A block of addresses in CIDR notation (RFC 4632 section 3.1, RFC 4291 section 2.3).
///
/// A single address is a block of one. An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291
/// section 2.5.5.2) counts as the IPv4 address in it, both in a block and when an address is
/// checked. So `::ffff:10.0.0.0/104` is stored and shown as `10.0.0.0/8`, and `::ffff:0:0/96` as
/// `0.0.0.0/0`. A shorter IPv6 prefix, such as `::/0`, contains no IPv4 address: to allow all
/// addresses, list `0.0.0.0/0` and `::/0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The reason why a network was refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The text is neither an address nor an address and a prefix length.
    #[error(
        "the text is not a network; write an IPv4 or IPv6 address, alone or with a prefix length, \
         such as 10.0.0.0/8"
    )]
    NotANetwork,
    /// The prefix length is greater than the 32 or 128 bits of the address.
    #[error(
        "the prefix length of a network is greater than {most}, the number of bits of the address; \
         write {most} or less"
    )]
    PrefixTooLong {
        /// The number of bits of the address.
        most: u8,
    },
    /// Bits after the prefix are set, so a single address or another prefix was meant.
    #[error(
        "the network has bits set after its prefix length; write 10.0.0.0/8 instead of 10.1.2.3/8, or the address alone"
    )]
    HostBitsSet,
}

impl Network {
    /// Creates the block of addresses that share the first `prefix` bits with `address`.
    ///
    /// # Errors
    /// [`NetworkError`] if the prefix is too long for the address, or bits after the prefix are
    /// set.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, NetworkError> {
        let (number, width) = bits(address);
        let host = width.checked_sub(prefix).ok_or(NetworkError::PrefixTooLong { most: width })?;
        if number & !mask(host) != 0 {
            return Err(NetworkError::HostBitsSet);
        }
        Ok(match address.to_canonical() {
            // The prefix is at least 96 here, because a shorter one would leave host bits set.
            v4 @ IpAddr::V4(_) if address.is_ipv6() => {
                Self { address: v4, prefix: prefix.saturating_sub(96) }
            }
            _ => Self { address, prefix },
        })
    }

    /// Returns the first address of the block.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the number of leading bits that the addresses of the block share.
    pub fn prefix_len(&self) -> u8 {
        self.prefix
    }

    /// Returns whether the block contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (address, width) = bits(address.to_canonical());
        let (network, own_width) = bits(self.address);
        width == own_width && (address ^ network) & mask(own_width.saturating_sub(self.prefix)) == 0
    }

    /// Returns whether every address of this block is in `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.prefix >= other.prefix && other.contains(self.address)
    }
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

/// Returns a mask of all bits but the lowest `host`.
fn mask(host: u8) -> u128 {
    u128::MAX.unbounded_shl(u32::from(host))
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError::NotANetwork)?;
        let width = bits(address).1;
        let prefix = match prefix {
            None => width,
            Some(digits) => {
                let canonical = digits.bytes().all(|byte| byte.is_ascii_digit())
                    && (1..=3).contains(&digits.len())
                    && (digits.len() == 1 || !digits.starts_with('0'));
                let number = if canonical { digits.parse::<u16>().ok() } else { None };
                let number = number.ok_or(NetworkError::NotANetwork)?;
                u8::try_from(number).map_err(|_| NetworkError::PrefixTooLong { most: width })?
            }
        };
        Self::new(address, prefix)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The networks from which a token may be used: 1 to [`MAX_NETWORKS`], sorted, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks(Arc<[Network]>);

/// The reason why a list of networks was refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworksError {
    /// The list is empty, so it would allow no address. To allow every address, give no list.
    #[error("the list of networks is empty; leave it out to allow every address")]
    Empty,
    /// The list has more than [`MAX_NETWORKS`] entries.
    #[error(
        "the list of networks has more than {MAX_NETWORKS} entries; join neighbours to a shorter prefix"
    )]
    TooMany,
    /// An entry is not a network.
    #[error(
        "entry {place} of the networks, counted from 0, is refused; write one such as 10.0.0.0/8"
    )]
    Entry {
        /// The index of the entry, from 0.
        place: usize,
        /// The reason.
        source: NetworkError,
    },
}

impl Networks {
    /// Creates the list of these networks.
    ///
    /// # Errors
    /// [`NetworksError`] if there are no networks or more than [`MAX_NETWORKS`].
    pub fn new(networks: impl IntoIterator<Item = Network>) -> Result<Self, NetworksError> {
        let mut list: Vec<Network> =
            networks.into_iter().take(MAX_NETWORKS.saturating_add(1)).collect();
        match list.len() {
            0 => return Err(NetworksError::Empty),
            1..=MAX_NETWORKS => {}
            _ => return Err(NetworksError::TooMany),
        }
        list.sort_unstable();
        list.dedup();
        Ok(Self(list.into()))
    }

    /// Parses the networks from texts such as `10.0.0.0/8` or `2001:db8::1`.
    ///
    /// # Errors
    /// [`NetworksError`], which names the refused entry.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, NetworksError> {
        let mut list = Vec::new();
        for (place, text) in texts.into_iter().enumerate() {
            if place >= MAX_NETWORKS {
                return Err(NetworksError::TooMany);
            }
            list.push(text.parse().map_err(|source| NetworksError::Entry { place, source })?);
        }
        Self::new(list)
    }

    /// Returns whether one of the networks contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Returns whether each of these networks is within one of `others`.
    pub fn is_within(&self, others: &Self) -> bool {
        self.0.iter().all(|network| others.0.iter().any(|other| network.is_within(other)))
    }

    /// Returns the networks, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Network> {
        self.0.iter()
    }
}

impl Serialize for Networks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_block_holds() {
        let table = [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.2", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "1.2.3.4", false),
            ("::/0", "::ffff:1.2.3.4", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("::ffff:10.0.0.0/104", "10.1.1.1", true),
            ("::ffff:10.0.0.0/104", "::ffff:10.1.1.1", true),
            ("::ffff:10.0.0.0/104", "11.1.1.1", false),
            ("2001:db8::/32", "2001:db8:ffff::", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("2001:db8::1", "2001:db8::1", true),
        ];
        for (block, address, holds) in table {
            assert_eq!(
                network(block).contains(address.parse().unwrap()),
                holds,
                "{block} {address}"
            );
        }
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
    }

    #[test]
    fn blocks_lie_within_blocks() {
        let table = [
            ("10.1.0.0/16", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.1.0.0/16", false),
            ("11.0.0.0/16", "10.0.0.0/8", false),
            ("10.0.0.0/8", "::/0", false),
            ("::1", "::/0", true),
        ];
        for (inner, outer, within) in table {
            assert_eq!(network(inner).is_within(&network(outer)), within, "{inner} {outer}");
        }
    }

    #[test]
    fn what_is_refused() {
        use NetworkError as E;
        let table = [
            ("", E::NotANetwork),
            ("10.0.0.0/", E::NotANetwork),
            ("10.0.0.0/-1", E::NotANetwork),
            ("10.0.0.0/+8", E::NotANetwork),
            ("10.0.0.0/08", E::NotANetwork),
            ("10.0.0.0/8/8", E::NotANetwork),
            ("10.0.0/8", E::NotANetwork),
            ("010.0.0.0/8", E::NotANetwork),
            (" 10.0.0.0/8", E::NotANetwork),
            ("localhost", E::NotANetwork),
            ("fe80::1%eth0", E::NotANetwork),
            ("10.0.0.0/33", E::PrefixTooLong { most: 32 }),
            ("10.0.0.0/999", E::PrefixTooLong { most: 32 }),
            ("::/129", E::PrefixTooLong { most: 128 }),
            ("10.0.0.1/8", E::HostBitsSet),
            ("10.0.0.0/0", E::HostBitsSet),
            ("2001:db8::1/32", E::HostBitsSet),
            ("::1/0", E::HostBitsSet),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Network>(), Err(error), "{text}");
        }
        assert_eq!(Networks::parse([]), Err(NetworksError::Empty));
        assert_eq!(Networks::parse(["::1"; 33]), Err(NetworksError::TooMany));
        assert_eq!(Networks::new([network("::1"); 33]), Err(NetworksError::TooMany));
        assert_eq!(
            Networks::parse(["::1", "::1/0"]),
            Err(NetworksError::Entry { place: 1, source: E::HostBitsSet })
        );
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32", "::1/128"] {
            assert_eq!(network(text).to_string(), text);
        }
    }
}
