#![allow(clippy::unwrap_used)]
use super::*;
use atoll_wire::tunnel::ClusterHeadroom;

fn gateway(name: &str) -> Gateway {
    Gateway {
        name: name.parse().unwrap(),
        region: "fra".parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
        draining: false,
    }
}

fn state(connected: bool, headroom: Option<u32>) -> TunnelState {
    let told = |healthy| ClusterHeadroom { cluster: "c".to_owned(), healthy, in_flight: 0 };
    TunnelState {
        connected,
        headroom: Arc::new(headroom.map(|healthy| ("c".to_owned(), told(healthy))).into_iter().collect()),
        ..TunnelState::default()
    }
}

fn said(by: &str, health: Health) -> RegionHealth {
    RegionHealth { region: "fra".parse().unwrap(), said_by: by.parse().unwrap(), health }
}

fn view(gateways: &[(&Gateway, &TunnelState)], said: &[RegionHealth]) -> RegionView {
    region_view(&"fra".parse().unwrap(), gateways, "c", said)
}

#[test]
fn what_a_tunnel_tells_outranks_what_gossip_says() {
    let a = gateway("a");
    for (headroom, gossip, expected) in [
        (Some(0), Health::Full, Health::None),
        (Some(2), Health::None, Health::Some),
        (Some(2), Health::Full, Health::Full),
        (None, Health::Some, Health::Some),
    ] {
        let view = view(&[(&a, &state(true, headroom))], &[said("a", gossip)]);
        assert_eq!(view.health, expected, "{headroom:?} {gossip:?}");
    }
    // Of a tunnel that is down, nothing it told counts.
    let down = view(&[(&a, &state(false, Some(5)))], &[said("a", Health::None)]);
    assert!(!down.tunnel_up && down.health == Health::None);
}

#[test]
fn a_dead_gateways_word_counts_only_where_no_living_one_speaks() {
    let (a, b) = (gateway("a"), gateway("b"));
    let (dead, alive) = (state(false, None), state(true, None));
    let both = [(&a, &dead), (&b, &alive)];
    let words = [said("a", Health::Full), said("b", Health::None)];
    assert_eq!(view(&both, &words).health, Health::None);
    assert_eq!(view(&both, &words[..1]).health, Health::Full);
}
