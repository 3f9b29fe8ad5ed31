use guard_core::model::Uid;

use super::*;

const LEAST: &str = "[service.web]\nendpoints = [8080]\n";

fn mistake(text: &str) -> String {
    Config::parse(text).expect_err("a mistake").to_string()
}

fn service(keys: &str) -> ServiceConfig {
    let text = format!("{LEAST}{keys}");
    Config::parse(&text).unwrap_or_else(|mistake| panic!("{mistake}\n{text}")).services.remove(0)
}

#[test]
fn the_annotated_example_is_a_configuration() {
    let example = include_str!("../../../dist/portguard.toml");
    let config = Config::parse(example).expect("the example");
    let [gateway] = config.services.as_slice() else { panic!("one service") };
    assert_eq!(&*gateway.name, "gateway");
    assert_eq!(gateway.endpoints.len(), 2);
    assert_eq!(gateway.recognise.patterns.len(), 1);
    assert_eq!(gateway.control, Grant::Only { uid: vec![1000], gid: Vec::new() });
}

#[test]
fn what_the_example_comments_out_is_the_default() {
    let example = include_str!("../../../dist/portguard.toml");
    // A commented setting that is no example is taken in: nothing may change.
    let mut example_follows = false;
    let mut block = false;
    let all: Vec<String> = example
        .lines()
        .map(|line| {
            let remark = line.starts_with("# ");
            if remark {
                example_follows = line.to_lowercase().contains("example");
            }
            block |= line.starts_with("#[");
            match line.strip_prefix('#') {
                Some(setting) if !remark && !example_follows && !block => setting.to_owned(),
                _ => {
                    block &= line.starts_with('#');
                    line.to_owned()
                }
            }
        })
        .collect();
    let all = all.join("\n");
    assert_ne!(all, example, "nothing was commented out");
    let with = Config::parse(&all).unwrap_or_else(|mistake| panic!("{mistake}\n{all}"));
    let without = Config::parse(example).expect("the example");
    assert_eq!(format!("{with:?}"), format!("{without:?}"));
}

#[test]
fn the_least_configuration_has_safe_defaults() {
    let config = Config::parse(LEAST).expect("a configuration");
    assert_eq!(config.api.socket, Path::new(SOCKET));
    assert_eq!(config.api.mode, 0o660);
    let service = &config.services[0];
    assert_eq!(service.observe, Grant::Everybody);
    assert_eq!(service.control, Grant::nobody());
    assert_eq!(service.restart, None);
    assert!(!service.recognise.any_owner && !service.evict);
    assert_eq!((service.budget.drain, service.budget.timeout), (None, None));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_what_was_meant() {
    assert_eq!(
        mistake("[service.web]\nendpoints = [80]\ncontroll = {}\n").split("; did").collect::<Vec<_>>()[1],
        " you mean `control`?"
    );
    assert!(
        mistake("[service.web]\nendpoints = [80]\ncontroll = {}\n")
            .starts_with("3:1: unknown key `controll`")
    );
    assert!(mistake("tear = \"auto\"\n").contains("did you mean `tier`?"));
    assert!(mistake("[service.web.recognise]\nmtach = []\n").starts_with("2:1: "));
    let nothing_like_it = mistake(&format!("{LEAST}xyzzy = 1\n"));
    assert!(!nothing_like_it.contains("did you mean"), "{nothing_like_it}");
}

#[test]
fn a_wrong_value_is_named_with_its_place() {
    let wrong = |keys: &str| mistake(&format!("{LEAST}{keys}\n"));
    assert!(
        wrong("budget = { drain = \"10\" }").starts_with("3:20: "),
        "{}",
        wrong("budget = { drain = \"10\" }")
    );
    assert!(wrong("recognise = { match = [\"(\"] }").starts_with("3:"));
    assert!(wrong("recognise = { match = [\"\"] }").contains("any-owner = true"));
    assert!(wrong("recognise = { exe = [\"\"] }").contains("nobody"));
    assert!(wrong("recognise = { any-owner = true, uid = [0] }").contains("pointless"));
    assert!(wrong("control = { uid = [\"no-such-user\"] }").contains("no user no-such-user"));
    assert!(wrong("control = { gid = [\"no-such-group\"] }").contains("no group no-such-group"));
    assert!(wrong("control = { uid = [-1] }").contains("no user -1"));
    assert!(wrong("restart = { command = [] }").contains("no program"));
    assert!(wrong("restart = { command = [\"systemctl\"] }").contains("whole path"));
    assert!(wrong("restart = {}").starts_with("3:11: say how it is restarted"), "{}", wrong("restart = {}"));
    assert!(wrong("restart = { unit = \"x\", command = [\"/x\"] }").contains("keep one of them"));
    assert!(wrong("restart = { command = [\"/x\"], user = 7 }").starts_with("3:38: this goes with `unit`"));
    assert!(wrong("restart = { unit = \"x.socket\" }").contains("a service unit"));
    assert!(wrong("restart = { unit = \"a/b\" }").contains("a service unit"));
    assert!(wrong("restart = { unit = \"x\", user = \"no-such-user\" }").contains("no user no-such-user"));
    assert!(wrong("preset = \"openclow\"").contains("openclaw"));
    assert!(mistake("tier = \"epbf\"\n").contains("did you mean `ebpf`?"));
    assert!(mistake("[api]\nmode = 660\n").starts_with("2:8: "));
    assert!(mistake("[api]\nmode = \"0999\"\n").contains("octal"));
    assert!(
        mistake("[api]\nsocket = \"portguard.sock\"\n").starts_with("2:10: give the socket's whole path")
    );
    assert!(mistake("[api]\nclients = 0\n").starts_with("2:11: "));
    assert!(mistake("poll-interval = \"1us\"\n").contains("at least 100us"));
}

#[test]
fn endpoints_are_written_as_a_port_or_with_an_address() {
    let of = |endpoint: &str| Config::parse(&format!("[service.web]\nendpoints = [{endpoint}]\n"));
    let specs = |endpoint: &str| of(endpoint).expect(endpoint).services[0].bind_specs().expect("bind specs");
    assert_eq!(specs("\"127.0.0.1:80\"")[0].address.to_string(), "127.0.0.1");
    assert_eq!(specs("\"[::1]:80\"")[0].port.get(), 80);
    assert_eq!(specs("80, 80").len(), 1);
    for wrong in ["0", "65536", "-1", "\"80\"", "\"::1:80\"", "\"localhost:80\"", "\"127.0.0.1:\"", "true"] {
        let mistake = of(wrong).expect_err(wrong).to_string();
        assert!(mistake.starts_with("2:14: "), "{wrong}: {mistake}");
    }
    assert!(mistake("[service.web]\nendpoints = []\n").starts_with("2:13: "));
    assert!(mistake("[service.web]\n").contains("missing key `endpoints`"));
    assert!(mistake("").contains("there is no service"));
}

#[test]
fn two_services_do_not_guard_the_same_endpoint() {
    let two = |netns: &str| format!("[service.a]\nendpoints = [80]\n[service.b]\nendpoints = [80]\n{netns}");
    assert!(mistake(&two("")).starts_with("4:14: service a guards this"));
    Config::parse(&two("netns = \"/run/netns/blue\"\n")).expect("another namespace is another port");
}

#[test]
fn names_that_would_not_fit_an_address_are_refused() {
    let named = |name: &str| Config::parse(&format!("[service.{name}]\nendpoints = [80]\n"));
    named("\"openclaw-gateway@1.main\"").expect("a name");
    for wrong in ["\"a/b\"", "\"\"", "\"a b\"", &format!("\"{}\"", "x".repeat(65))] {
        assert!(named(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn rules_are_the_same_as_the_flags_make() {
    let service =
        service("recognise = { match = [\"gate\"], comm = [\"openclaw-gateway\"], uid = [\"root\", 7] }");
    let rules = service.recognise.rules();
    assert_eq!(rules.patterns.len(), 1);
    assert_eq!(rules.comm, ["openclaw-gatewa"]);
    assert_eq!(rules.uid, [Uid(0), Uid(7)]);
}

#[test]
fn a_unit_is_restarted_by_its_manager() {
    let restart = |keys: &str| service(&format!("restart = {{ {keys} }}")).restart.expect("a restart");
    let unit =
        |manager, already_running| Restart::Unit { manager, name: UnitName::new("x"), already_running };
    assert_eq!(restart("unit = \"x\""), unit(Manager::System, Vec::new()));
    assert_eq!(
        restart("unit = \"x.service\", user = 7, already-running-codes = [78]"),
        unit(Manager::User(Uid(7)), vec![78])
    );
    assert_eq!(restart("unit = \"x\", user = \"root\""), unit(Manager::User(Uid(0)), Vec::new()));
}

#[test]
fn a_preset_stands_for_rules_and_an_exit_code_unless_others_are_given() {
    let known = service("preset = \"openclaw\"\nrestart = { unit = \"x\" }");
    assert!(
        known.recognise.patterns.len() > 1 && known.recognise.comm.contains(&"openclaw-gatewa".to_owned())
    );
    assert!(
        matches!(&known.restart, Some(Restart::Unit { already_running, .. }) if *already_running == [78])
    );
    let own = service(
        "preset = \"openclaw\"\nrecognise = { match = [\"^x\"] }\nrestart = { unit = \"x\", already-running-codes = [] }",
    );
    assert_eq!((own.recognise.patterns.len(), own.recognise.comm.is_empty()), (1, false));
    assert!(
        matches!(&own.restart, Some(Restart::Unit { already_running, .. }) if already_running.is_empty())
    );
}

#[test]
fn a_grant_covers_users_and_their_groups() {
    let grant = service("control = { uid = [7], gid = [8] }").control;
    assert!(grant.covers(7, &[]) && grant.covers(1, &[2, 8]));
    assert!(!grant.covers(8, &[7]));
    assert!(Grant::Everybody.covers(1, &[]));
    assert!(!Grant::nobody().covers(1, &[1]));
}
