//! The file as it is written.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use guard_core::model::{Manager, Port, Uid, UnitName};
use guard_core::policy::CgroupGlob;
use hyper::Uri;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{ApiConfig, Budget, Config, Endpoint, Grant, Mistake, ObserverConfig, OtlpConfig, Recognise};
use super::{MODE, Restart, SOCKET, ServiceConfig};
use crate::runtime::asker;
use crate::runtime::preset::{self, Expansion};
use crate::runtime::spelling::{
    Place, Regex, as_kernel_comm, parse_buffer, parse_duration, parse_interval, parse_user,
};
use crate::runtime::{Tier, TierChoice};

/// More would not make a service's name clearer, and it is part of addresses and metrics.
const LONGEST_NAME: usize = 64;

/// The bounds may be chosen, but not so that they bound nothing.
const MOST_CLIENTS: usize = 65_536;
const MOST_HISTORY: usize = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    tier: TierWord,
    require_tier: Option<RequiredTier>,
    poll_interval: Option<Interval>,
    event_buffer: Option<Buffer>,
    #[serde(default)]
    api: Api,
    otlp: Option<Spanned<Otlp>>,
    #[serde(default)]
    service: BTreeMap<Spanned<String>, Service>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TierWord {
    #[default]
    Auto,
    Ebpf,
    Netlink,
    Poll,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RequiredTier {
    Ebpf,
    Netlink,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Api {
    socket: Option<Spanned<PathBuf>>,
    mode: Option<Mode>,
    group: Option<Group>,
    clients: Option<Spanned<NonZeroUsize>>,
    history: Option<Spanned<NonZeroUsize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Otlp {
    endpoint: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Service {
    endpoints: Spanned<Vec<Spanned<Written>>>,
    #[serde(default)]
    v6only: bool,
    #[serde(default)]
    strict_bind: bool,
    netns: Option<Parsed<Place>>,
    preset: Option<PresetWord>,
    #[serde(default)]
    recognise: RecogniseKeys,
    #[serde(default)]
    budget: BudgetKeys,
    #[serde(default)]
    port_only: bool,
    #[serde(default)]
    evict: bool,
    restart: Option<Spanned<RestartKeys>>,
    observe: Option<GrantKeys>,
    control: Option<GrantKeys>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PresetWord {
    Openclaw,
}

impl PresetWord {
    const fn expansion(self) -> &'static Expansion {
        match self {
            Self::Openclaw => &preset::OPENCLAW,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RecogniseKeys {
    #[serde(default, rename = "match")]
    patterns: Vec<Parsed<Regex>>,
    #[serde(default)]
    exe: Vec<Text>,
    #[serde(default)]
    comm: Vec<Text>,
    #[serde(default)]
    uid: Vec<User>,
    #[serde(default)]
    cgroup: Vec<Glob>,
    any_owner: Option<Spanned<bool>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BudgetKeys {
    drain: Option<Span>,
    timeout: Option<Span>,
    start: Option<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RestartKeys {
    command: Option<Spanned<Vec<String>>>,
    unit: Option<Spanned<String>>,
    user: Option<Spanned<User>>,
    already_running_codes: Option<Spanned<Vec<u8>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GrantKeys {
    #[serde(default)]
    uid: Vec<User>,
    #[serde(default)]
    gid: Vec<Group>,
}

/// Something that is written as a string.
struct Parsed<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// What an unset variable leaves behind is no rule.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            Err(D::Error::custom("an empty text recognises nobody"))
        } else {
            Ok(Self(text))
        }
    }
}

struct Glob(CgroupGlob);

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        CgroupGlob::new(&String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let written = String::deserialize(from)?;
        let wrong = |error| D::Error::custom(format!("{error}; write 500ms, 3s or 2m"));
        parse_duration(&written).map(Self).map_err(wrong)
    }
}

struct Interval(Duration);

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parse_interval(&String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

struct Buffer(u32);

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parse_buffer(&String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

/// Permissions, written as `chmod` takes them.
struct Mode(u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("write permissions as a string of octal digits, such as \"0660\"");
        let written = String::deserialize(from)?;
        let mode = u32::from_str_radix(&written, 8).map_err(|_| wrong())?;
        if mode > 0o777 { Err(wrong()) } else { Ok(Self(mode)) }
    }
}

/// A number or a string.
enum Written {
    Number(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a string")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Written, E> {
                Ok(Written::Number(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Written, E> {
                Ok(Written::Text(text.to_owned()))
            }
        }
        from.deserialize_any(Either)
    }
}

struct User(u32);

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(number) => u32::try_from(number).map_err(|_| format!("no user {number}")),
            Written::Text(name) => parse_user(&name).map(|uid| uid.0),
        }
        .map(Self)
        .map_err(D::Error::custom)
    }
}

struct Group(u32);

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Written::deserialize(from)? {
            Written::Number(number) => u32::try_from(number).map_err(|_| format!("no group {number}")),
            Written::Text(name) => match asker::group_id(&name) {
                Ok(Some(gid)) => Ok(gid),
                Ok(None) => Err(format!("no group {name}")),
                Err(error) => Err(format!("cannot look up group {name}: {error}")),
            },
        }
        .map(Self)
        .map_err(D::Error::custom)
    }
}

/// Parses and checks.
pub(super) fn parse(text: &str) -> Result<Config, Mistake> {
    let file: File = toml::from_str(text).map_err(|error| Mistake::of_toml(text, &error))?;
    let checks = Checks { text };
    let observer = ObserverConfig {
        tier: match file.tier {
            TierWord::Auto => TierChoice::Auto,
            TierWord::Ebpf => TierChoice::Only(Tier::Ebpf),
            TierWord::Netlink => TierChoice::Only(Tier::Netlink),
            TierWord::Poll => TierChoice::Only(Tier::Poll),
        },
        require: file.require_tier.map(|tier| match tier {
            RequiredTier::Ebpf => Tier::Ebpf,
            RequiredTier::Netlink => Tier::Netlink,
        }),
        poll_interval: file.poll_interval.map_or(Duration::from_millis(5), |interval| interval.0),
        event_buffer: file.event_buffer.map(|buffer| buffer.0),
    };
    let api = checks.api(file.api)?;
    let otlp = file.otlp.map(|table| checks.otlp(&table)).transpose()?;
    if file.service.is_empty() {
        let what = "there is no service: add a table such as [service.gateway]".to_owned();
        return Err(Mistake { place: None, what });
    }
    let mut services: Vec<ServiceConfig> = Vec::new();
    for (name, service) in file.service {
        let service = checks.service(name, service, &services)?;
        services.push(service);
    }
    Ok(Config { observer, api, otlp, services })
}

struct Checks<'a> {
    text: &'a str,
}

impl Checks<'_> {
    fn wrong<T, S>(&self, at: &Spanned<S>, what: impl Into<String>) -> Result<T, Mistake> {
        Err(Mistake::at(self.text, Some(at.span()), what.into()))
    }

    fn api(&self, api: Api) -> Result<ApiConfig, Mistake> {
        if let Some(socket) = api.socket.as_ref().filter(|socket| !socket.get_ref().is_absolute()) {
            return self.wrong(socket, "give the socket's whole path, from /");
        }
        if let Some(clients) = api.clients.as_ref().filter(|clients| clients.get_ref().get() > MOST_CLIENTS) {
            return self.wrong(clients, format!("at most {MOST_CLIENTS} clients"));
        }
        if let Some(history) = api.history.as_ref().filter(|history| history.get_ref().get() > MOST_HISTORY) {
            return self.wrong(history, format!("at most {MOST_HISTORY} events"));
        }
        let or = |given: Option<Spanned<NonZeroUsize>>, default: NonZeroUsize| {
            given.map_or(default, Spanned::into_inner)
        };
        Ok(ApiConfig {
            socket: api.socket.map_or_else(|| PathBuf::from(SOCKET), Spanned::into_inner),
            mode: api.mode.map_or(MODE, |mode| mode.0),
            group: api.group.map(|group| group.0),
            clients: or(api.clients, const { NonZeroUsize::new(1024).expect("not zero") }),
            history: or(api.history, const { NonZeroUsize::new(4096).expect("not zero") }),
        })
    }

    fn otlp(&self, table: &Spanned<Otlp>) -> Result<OtlpConfig, Mistake> {
        if !cfg!(feature = "otlp") {
            let what = "this portguard was built without the feature otlp: build it with `cargo xtask build \
                        --release --otlp`, or take this table out";
            return self.wrong(table, what);
        }
        let endpoint = &table.get_ref().endpoint;
        collector(endpoint.get_ref()).or_else(|what| self.wrong(endpoint, what))
    }

    fn service(
        &self,
        name: Spanned<String>,
        service: Service,
        others: &[ServiceConfig],
    ) -> Result<ServiceConfig, Mistake> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '@');
        let text = name.get_ref();
        if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(plain) {
            return self.wrong(
                &name,
                format!("a service's name has 1 to {LONGEST_NAME} letters, digits, or one of - _ . @"),
            );
        }
        if service.endpoints.get_ref().is_empty() {
            return self.wrong(&service.endpoints, "a service needs an endpoint");
        }
        let netns = service.netns.map(|place| place.0);
        let mut endpoints = Vec::new();
        for written in service.endpoints.get_ref() {
            let endpoint = match endpoint(written.get_ref()) {
                Ok(endpoint) => endpoint,
                Err(what) => return self.wrong(written, what),
            };
            let same = |other: &&ServiceConfig| other.netns == netns && other.endpoints.contains(&endpoint);
            if let Some(other) = others.iter().find(same) {
                return self.wrong(written, format!("service {} guards this endpoint already", other.name));
            }
            endpoints.push(endpoint);
        }
        let budget = budget(&service.budget);
        let preset = service.preset.map(PresetWord::expansion);
        Ok(ServiceConfig {
            endpoints,
            v6only: service.v6only,
            strict_bind: service.strict_bind,
            netns,
            recognise: self.recognise(service.recognise, preset)?,
            budget,
            port_only: service.port_only,
            evict: service.evict,
            restart: service.restart.map(|restart| self.restart(restart, preset)).transpose()?,
            observe: service.observe.map_or(Grant::Everybody, grant),
            control: service.control.map_or_else(Grant::nobody, grant),
            name: name.into_inner().into(),
        })
    }

    fn recognise(
        &self,
        keys: RecogniseKeys,
        preset: Option<&'static Expansion>,
    ) -> Result<Recognise, Mistake> {
        let any_owner = keys.any_owner.as_ref().is_some_and(|any| *any.get_ref());
        let rules = !keys.patterns.is_empty()
            || !keys.exe.is_empty()
            || !keys.comm.is_empty()
            || !keys.uid.is_empty()
            || !keys.cgroup.is_empty();
        if let Some(any) = keys.any_owner.as_ref().filter(|any| *any.get_ref() && rules) {
            return self.wrong(any, "any-owner makes the other rules pointless: keep one or the other");
        }
        // A rule of the user's own takes the place of the preset's of that kind.
        let preset = preset.filter(|_| !any_owner);
        let mut patterns: Vec<Regex> = keys.patterns.into_iter().map(|pattern| pattern.0).collect();
        let mut comm: Vec<String> = keys.comm.iter().map(|comm| as_kernel_comm(&comm.0)).collect();
        if let Some(known) = preset {
            if patterns.is_empty() {
                patterns = known.regexes();
            }
            if comm.is_empty() {
                comm = known.comm.iter().map(|comm| as_kernel_comm(comm)).collect();
            }
        }
        Ok(Recognise {
            patterns,
            exe: keys.exe.into_iter().map(|exe| exe.0).collect(),
            comm,
            uid: keys.uid.iter().map(|user| Uid(user.0)).collect(),
            cgroups: keys.cgroup.into_iter().map(|glob| glob.0).collect(),
            any_owner,
        })
    }

    fn restart(
        &self,
        table: Spanned<RestartKeys>,
        preset: Option<&'static Expansion>,
    ) -> Result<Restart, Mistake> {
        let span = table.span();
        let keys = table.into_inner();
        let only_with_unit = "this goes with `unit`, not with `command`";
        match (keys.command, keys.unit) {
            (Some(command), None) => {
                if let Some(user) = &keys.user {
                    return self.wrong(user, only_with_unit);
                }
                if let Some(codes) = &keys.already_running_codes {
                    return self.wrong(codes, only_with_unit);
                }
                match command.get_ref().first() {
                    Some(program) if program.starts_with('/') => Ok(Restart::Command(command.into_inner())),
                    Some(_) => self.wrong(&command, "give the program's whole path, from /"),
                    None => self.wrong(&command, "there is no program to run"),
                }
            }
            (None, Some(unit)) => {
                let plain = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
                let name = UnitName::new(unit.get_ref());
                if unit.get_ref().is_empty() || !unit.get_ref().chars().all(plain) || !name.is_service() {
                    return self.wrong(&unit, "give the name of a service unit, such as gateway.service");
                }
                let codes = keys.already_running_codes.map(Spanned::into_inner);
                let codes = codes.map(|codes| codes.into_iter().map(i32::from).collect());
                Ok(Restart::Unit {
                    manager: keys
                        .user
                        .map_or(Manager::System, |user| Manager::User(Uid(user.into_inner().0))),
                    name,
                    already_running: codes
                        .unwrap_or_else(|| preset.map(|known| known.already_runs).into_iter().collect()),
                })
            }
            (Some(_), Some(unit)) => {
                self.wrong(&unit, "a service is restarted by `command` or by `unit`: keep one of them")
            }
            (None, None) => Err(Mistake::at(
                self.text,
                Some(span),
                "say how it is restarted: by `unit`, or by `command`".to_owned(),
            )),
        }
    }
}

fn budget(keys: &BudgetKeys) -> Budget {
    Budget {
        drain: keys.drain.as_ref().map(|span| span.0),
        timeout: keys.timeout.as_ref().map(|span| span.0),
        start: keys.start.as_ref().map_or(Duration::from_secs(60), |span| span.0),
    }
}

fn grant(keys: GrantKeys) -> Grant {
    Grant::Only {
        uid: keys.uid.iter().map(|user| user.0).collect(),
        gid: keys.gid.iter().map(|group| group.0).collect(),
    }
}

/// As OTLP says: the traces have a path of their own below the endpoint.
fn collector(endpoint: &str) -> Result<OtlpConfig, String> {
    let wrong =
        "write the collector's endpoint for OTLP over HTTP with its port, such as http://127.0.0.1:4318";
    let uri: Uri = endpoint.parse().map_err(|error| format!("{error}; {wrong}"))?;
    if uri.scheme_str() == Some("https") {
        return Err("TLS is not spoken here: name a collector on this machine, which passes it on".to_owned());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("a user and a password do not belong into the endpoint".to_owned());
    }
    if uri.scheme_str() != Some("http") || uri.port_u16().is_none() || uri.query().is_some() {
        return Err(wrong.to_owned());
    }
    Ok(OtlpConfig { url: format!("{}/v1/traces", endpoint.trim_end_matches('/')) })
}

fn endpoint(written: &Written) -> Result<Endpoint, String> {
    let text = match written {
        Written::Number(number) => return Ok(Endpoint { address: None, port: port(&number.to_string())? }),
        Written::Text(text) => text,
    };
    let Some((address, number)) = text.rsplit_once(':') else {
        return Err(
            "write ADDRESS:PORT, such as 127.0.0.1:18789 or [::1]:18789, or only the port as a number"
                .to_owned(),
        );
    };
    if address.contains(':') && !address.starts_with('[') {
        return Err("write an IPv6 address in brackets: [::1]:18789".to_owned());
    }
    Ok(Endpoint { address: Some(address.parse()?), port: port(number)? })
}

fn port(text: &str) -> Result<Port, String> {
    let port = text.parse::<NonZeroU16>().ok().and_then(|port| Port::new(port.get()));
    port.ok_or_else(|| format!("{text} is no port: a port is a number from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_go_below_the_endpoint_of_a_collector() {
        let url = |endpoint| collector(endpoint).map(|otlp| otlp.url);
        assert_eq!(url("http://127.0.0.1:4318").as_deref(), Ok("http://127.0.0.1:4318/v1/traces"));
        assert_eq!(url("http://[::1]:4318/otel/").as_deref(), Ok("http://[::1]:4318/otel/v1/traces"));
        assert!(url("http://me:secret@127.0.0.1:4318").expect_err("a secret").contains("a password"));
        assert!(url("https://collector:4318").expect_err("TLS").contains("on this machine"));
        for wrong in ["", "127.0.0.1:4318", "http://127.0.0.1", "ftp://a:1", "http://a:1/?b", "http://a:b"] {
            assert!(url(wrong).expect_err(wrong).contains("http://127.0.0.1:4318"), "{wrong}");
        }
    }

    #[cfg(not(feature = "otlp"))]
    #[test]
    fn without_the_feature_the_table_is_an_error_that_names_it() {
        let text = "[otlp]\nendpoint = \"http://127.0.0.1:4318\"\n[service.web]\nendpoints = [80]\n";
        let mistake = parse(text).expect_err("no such feature");
        assert_eq!(mistake.place.map(|(line, _)| line), Some(1), "{mistake}");
        assert!(mistake.what.contains("built without the feature otlp"), "{mistake}");
    }
}
