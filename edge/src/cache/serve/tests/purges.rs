//! What is no longer so: changes and purges, while things are on their way and where the origin fails.

use super::*;

#[tokio::test]
async fn who_comes_after_a_change_or_a_purge_does_not_get_what_is_being_validated() {
    local(async {
        let early = "cache-control: max-age=1\nage: 5\netag: \"a\"";
        for change in [
            |cache: &Cache| cache.purge("o/a", &mark(1), |_, _| None),
            |cache: &Cache| cache.index.remove(&Key::resource("id", "h", "/p")),
        ] {
            let (cache, stand) = (cache(), Stand::with([Script::Answer(200, early, "old")]));
            ask(&cache, &stand, get(&[])).await.unwrap();
            settle().await;
            let stand = stand.gated();
            let asks = || {
                let (cache, stand) = (Arc::clone(&cache), stand.clone());
                tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
            };
            let renewed = Script::Answer(304, "cache-control: max-age=60\netag: \"a\"", "");
            let new = |text| Script::Answer(200, FRESH, text);
            stand.0.scripts.borrow_mut().extend([renewed, new("new"), new("newer")]);
            let first = asks();
            settle().await;
            change(&cache);
            let second = asks();
            settle().await;
            stand.0.gate.notify_one();
            assert_eq!(first.await.unwrap().unwrap().2, "old");
            stand.0.gated.set(false);
            stand.0.gate.notify_waiters();
            settle().await;
            stand.0.gate.notify_one();
            assert_eq!(second.await.unwrap().unwrap().2, "new");
            settle().await;
            assert_ne!(ask(&cache, &stand, get(&[])).await.unwrap().2, "old");
        }
    })
    .await;
}

#[tokio::test]
async fn what_another_edge_had_before_a_purge_is_not_used_after_it() {
    local(async {
        let answer = |body| Script::Answer(200, FRESH, body);
        let (cache, stand) = (cache(), Stand::with([answer("old"), answer("new"), answer("newer")]));
        cache.purge("o/a", &mark(5), |_, _| None);
        // It had not heard of the purge when it asked the origin.
        stand.0.asked_at.set(Some(4));
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "old");
        settle().await;
        stand.0.asked_at.set(Some(7));
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "new");
        settle().await;
        assert!(ask(&cache, &stand, get(&[])).await.unwrap().1.contains("hit"));
        // That it had heard of more than we have is not believed: no edge's answer outlives purges that are yet to come.
        cache.purge("o/a", &mark(6), |_, _| None);
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "newer");
    })
    .await;
}

#[tokio::test]
async fn who_comes_after_a_purge_does_not_join_a_fetch_from_before_it() {
    local(async {
        let (send, pieces) = mpsc::channel(4);
        let new = |body| Script::Answer(200, FRESH, body);
        let scripts = [Script::Slowly(FRESH, pieces), new("new"), new("newer")];
        let (cache, stand) = (cache(), Stand::with(scripts));
        let asks = || {
            let (cache, stand) = (Arc::clone(&cache), stand.clone());
            tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
        };
        let first = asks();
        settle().await;
        cache.purge("o/a", &mark(1), |_, _| None);
        let second = asks();
        assert_eq!(second.await.unwrap().unwrap().2, "new");
        send.send(Ok(Bytes::from_static(b"old"))).await.unwrap();
        drop(send);
        assert_eq!(first.await.unwrap().unwrap().2, "old");
        settle().await;
        assert_eq!(asks().await.unwrap().unwrap().2, "newer", "what ended last is of before the purge");
        settle().await;
        assert!(asks().await.unwrap().unwrap().1.contains("hit"));
    })
    .await;
}

#[tokio::test]
async fn what_is_fresh_but_not_wanted_does_not_stand_in() {
    local(async {
        let fails = || Script::Answer(503, "x: y", "sorry");
        // Purged softly, and the app says nothing of failures.
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, FRESH, "old"), fails()]));
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "old");
        settle().await;
        let what = Some(record::purge::What::All(true));
        let soft = record::Purges { floor: 0, marks: vec![record::Purge { seq: 1, what, soft: true }] };
        cache.purge("o/a", &soft, |_, _| None);
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().0, 503);
        assert_eq!(stand.0.seen.borrow()[1]["if-none-match"], "\"a\"");
        // Another edge knows of a change, whatever the app says of failures.
        let lasting = "cache-control: max-age=60, stale-if-error=60\netag: \"a\"";
        let (cache, stand) = (self::cache(), Stand::with([Script::Answer(200, lasting, "old"), fails()]));
        let of_edge = |fields| Wish { is_edge: true, ..get(fields) };
        assert_eq!(ask(&cache, &stand, of_edge(&[])).await.unwrap().2, "old");
        settle().await;
        assert_eq!(ask(&cache, &stand, of_edge(&[("cache-control", "no-cache")])).await.unwrap().0, 503);
        assert!(ask(&cache, &stand, of_edge(&[])).await.unwrap().1.contains("hit"));
    })
    .await;
}

#[tokio::test]
async fn an_edge_that_was_away_validates_until_it_has_been_told_all() {
    local(async {
        let scripts =
            [Script::Answer(200, FRESH, "old"), Script::Answer(304, FRESH, ""), Script::Answer(503, "", "")];
        let (cache, stand) = (cache(), Stand::with(scripts));
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        cache.behind.store(true, std::sync::atomic::Ordering::Release);
        let validated = ask(&cache, &stand, get(&[])).await.unwrap();
        assert!(validated.2 == "old" && validated.1.contains("fwd=stale; fwd-status=304"), "{validated:?}");
        settle().await;
        assert_eq!(
            ask(&cache, &stand, get(&[])).await.unwrap().2,
            "old",
            "where the instance fails it serves"
        );
        cache.behind.store(false, std::sync::atomic::Ordering::Release);
        settle().await;
        assert!(ask(&cache, &stand, get(&[])).await.unwrap().1.contains("hit"));
    })
    .await;
}

#[tokio::test]
async fn what_was_purged_meanwhile_does_not_stand_in() {
    local(async {
        let lasting = "cache-control: max-age=1, stale-if-error=60\nage: 5\netag: \"a\"";
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, lasting, "old")]));
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        let stand = stand.gated();
        stand.0.scripts.borrow_mut().push_back(Script::Answer(503, "x: y", "sorry"));
        let asking = {
            let (cache, stand) = (Arc::clone(&cache), stand.clone());
            tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
        };
        settle().await;
        cache.purge("o/a", &mark(1), |_, _| None);
        stand.0.gate.notify_one();
        assert_eq!(asking.await.unwrap().unwrap().0, 503);
    })
    .await;
}
