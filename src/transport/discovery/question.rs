//! One question to the name servers, bounded in time, and what it led to.
//!
//! DNSSEC and DANE (RFC 7672, RFC 7673) go here when they come. With validation on, hickory tells for each record whether it was
//! proven; an [`Outcome`] then carries that, a bogus answer becomes a [`Failure::Server`], and RRSIGs come back among the answers,
//! which is why records are picked by type below. A `tlsa` question beside [`services`], asked for each proven target
//! (`_<port>._udp.<target>`), would let a proven SRV target and its TLSA records stand in for a CA: see `federation::dial`, where the
//! certificate is checked for the domain.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::cache::{Failure, Outcome};
use super::srv::SrvRecord;
use crate::base::limits;

/// SRV records, be they behind aliases (CNAME). hickory follows those for addresses, but takes an SRV record's target for one more
/// alias, and so finds nothing behind a real one: a name without records may still be one.
pub(super) async fn services(dns: &TokioResolver, name: &str) -> Outcome<Vec<SrvRecord>> {
    let (mut name, mut alias_ttl) = (name.to_owned(), Duration::MAX);
    for _ in 0..=limits::DNS_ALIASES_MAX {
        let pick = |data: &RData| if let RData::SRV(srv) = data { Some(srv.into()) } else { None };
        let none = match ask(dns, &name, RecordType::SRV, pick).await {
            Ok((records, ttl)) => return Ok((records, ttl.min(alias_ttl))),
            Err(none @ (Failure::NoSuchName | Failure::NoRecords, _)) => none,
            Err(failed) => return Err(failed),
        };
        let pick = |data: &RData| if let RData::CNAME(alias) = data { Some(alias.0.to_ascii()) } else { None };
        match ask(dns, &name, RecordType::CNAME, pick).await {
            Ok((aliases, ttl)) => {
                let Some(next) = aliases.into_iter().next() else { return Err(none) };
                (name, alias_ttl) = (next, alias_ttl.min(ttl));
            }
            Err((Failure::NoSuchName | Failure::NoRecords, _)) => return Err(none),
            Err(failed) => return Err(failed),
        }
    }
    Err((Failure::Server(format!("there are more than {} aliases on the way", limits::DNS_ALIASES_MAX)), None))
}

/// IPv4 addresses.
pub(super) async fn v4(dns: &TokioResolver, name: &str) -> Outcome<Vec<Ipv4Addr>> {
    ask(dns, name, RecordType::A, |data| if let RData::A(a) = data { Some(a.0) } else { None }).await
}

/// IPv6 addresses.
pub(super) async fn v6(dns: &TokioResolver, name: &str) -> Outcome<Vec<Ipv6Addr>> {
    ask(dns, name, RecordType::AAAA, |data| if let RData::AAAA(aaaa) = data { Some(aaaa.0) } else { None }).await
}

/// Asks within [`limits::DNS_TIMEOUT`]: hickory's own time-out applies per attempt and server, so it adds up. An answer that
/// follows an alias counts no longer than any part of it.
async fn ask<T>(dns: &TokioResolver, name: &str, wanted: RecordType, pick: fn(&RData) -> Option<T>) -> Outcome<Vec<T>> {
    let answer = match tokio::time::timeout(limits::DNS_TIMEOUT, dns.lookup(name, wanted)).await {
        Err(_) | Ok(Err(NetError::Timeout)) => return Err((Failure::TimedOut, None)),
        Ok(Err(error)) => return Err(failure(&error)),
        Ok(Ok(answer)) => answer,
    };
    let records: Vec<T> = answer.answers().iter().filter_map(|record| pick(&record.data)).collect();
    if records.is_empty() {
        return Err((Failure::NoRecords, None));
    }
    let ttl = answer.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
    Ok((records, Duration::from_secs(ttl.into())))
}

/// Sorts a failure, and finds the zone's negative TTL.
fn failure(error: &NetError) -> (Failure, Option<Duration>) {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
            match none.response_code {
                ResponseCode::NXDomain => (Failure::NoSuchName, ttl),
                ResponseCode::NoError => (Failure::NoRecords, ttl),
                code => (Failure::Server(format!("the name server answered {code}")), None),
            }
        }
        NetError::Dns(DnsError::ResponseCode(code)) => (Failure::Server(format!("the name server answered {code}")), None),
        error if error.is_nx_domain() => (Failure::NoSuchName, None),
        error if error.is_no_records_found() => (Failure::NoRecords, None),
        error => (Failure::Server(error.to_string()), None),
    }
}
