//! The address of a client in the form that a verification carries.

use crate::token::id::{from_words, words};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a client, if known, as words.
///
/// A verification moves it several times. A byte at its front would make each move wait for the
/// stores of the previous one.
///
/// An IPv4-mapped IPv6 address becomes the IPv4 address in it, so that all later code sees the IPv4
/// address.
#[derive(Clone, Copy)]
pub(crate) struct Peer([u64; 3]);

impl Peer {
    pub(crate) fn new(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            None => Self([0, 0, 0]),
            Some(IpAddr::V4(address)) => Self([4, 0, address.to_bits().into()]),
            Some(IpAddr::V6(address)) => {
                let [high, low] = words(address.to_bits());
                Self([6, high, low])
            }
        }
    }

    pub(in crate::service) fn address(self) -> Option<IpAddr> {
        match self.0 {
            [4, _, bits] => u32::try_from(bits).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
            [6, high, low] => Some(Ipv6Addr::from_bits(from_words([high, low])).into()),
            _ => None,
        }
    }
}
