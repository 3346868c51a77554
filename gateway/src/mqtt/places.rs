//! How many connections one address holds, so that a single stranger cannot take the places of all others (no I/O).
//!
//! Over IPv6 a host usually has a whole /64 to itself, so that counts as one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Bounded by the number of open connections: an address without any is forgotten.
#[derive(Debug)]
pub struct Places {
    /// 0: no limit.
    per_address_max: u32,
    taken: Mutex<HashMap<IpAddr, u32>>,
}

/// A connection's place; dropping it frees it.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub fn new(per_address_max: u32) -> Self {
        Places { per_address_max, taken: Mutex::default() }
    }

    /// `None`: the address holds as many as it may.
    pub fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let address = counted_as(from);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_insert(0);
        if self.per_address_max > 0 && *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

fn counted_as(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_by(places: &Arc<Places>, from: &str) -> Option<Place> {
        places.take(from.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let places = Arc::new(Places::new(2));
        let held = [taken_by(&places, "10.0.0.1"), taken_by(&places, "::ffff:10.0.0.1")];
        assert!(held.iter().all(Option::is_some));
        assert!(taken_by(&places, "10.0.0.1").is_none(), "mapped into IPv6 it is the same address");
        assert!(taken_by(&places, "10.0.0.2").is_some());
        drop(held);
        assert!(taken_by(&places, "10.0.0.1").is_some());
        assert!(places.taken.lock().unwrap().is_empty(), "who holds nothing is forgotten");
    }

    #[test]
    fn a_host_is_one_address_however_many_of_its_network_it_uses() {
        let places = Arc::new(Places::new(1));
        let _held = taken_by(&places, "2001:db8:0:1::1").unwrap();
        assert!(taken_by(&places, "2001:db8:0:1:ffff:ffff:ffff:ffff").is_none());
        assert!(taken_by(&places, "2001:db8:0:2::1").is_some());
    }

    #[test]
    fn zero_is_no_limit() {
        let places = Arc::new(Places::new(0));
        let held: Vec<_> = (0..10_000).map(|_| taken_by(&places, "10.0.0.1")).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
