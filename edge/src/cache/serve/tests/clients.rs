//! What is one client's alone, and what one client can do to the others.

use super::*;

#[tokio::test]
async fn what_is_not_shared_lets_the_others_go_at_once() {
    local(async {
        let private = || Script::Answer(200, "cache-control: private", "mine");
        let (cache, stand) = (cache(), Stand::with((0..6).map(|_| private())).gated());
        let clients: Vec<_> = (0..5)
            .map(|_| {
                let (cache, stand) = (Arc::clone(&cache), stand.clone());
                tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
            })
            .collect();
        settle().await;
        assert_eq!(stand.asked(), 1);
        stand.0.gate.notify_one();
        settle().await;
        assert_eq!(stand.asked(), 5, "all at the same time");
        stand.0.gated.set(false);
        stand.0.gate.notify_waiters();
        for client in clients {
            assert_eq!(client.await.unwrap().unwrap().2, "mine");
        }
        // Nobody waits for the next one either, which may be one to store.
        stand.0.gated.set(true);
        let asks = || {
            let (cache, stand) = (Arc::clone(&cache), stand.clone());
            tokio::task::spawn_local(async move { ask(&cache, &stand, get(&[])).await })
        };
        stand.0.scripts.borrow_mut().push_back(private());
        let (one, two) = (asks(), asks());
        settle().await;
        assert_eq!(stand.asked(), 7, "both at the same time");
        stand.0.gated.set(false);
        stand.0.gate.notify_waiters();
        let said = [one, two].map(async |client| client.await.unwrap().unwrap().1);
        let [one, two] = said;
        assert!(one.await.contains("detail=private") && two.await.contains("detail=pass"));
        let shared = Stand::with([Script::Answer(200, FRESH, "ours")]);
        assert_eq!(ask(&cache, &shared, get(&[])).await.unwrap().2, "ours");
        settle().await;
        assert!(
            ask(&cache, &shared, get(&[])).await.unwrap().1.contains("hit"),
            "once it is for all it is stored"
        );
    })
    .await;
}

#[tokio::test]
async fn one_clients_request_does_not_turn_the_cache_off() {
    local(async {
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, FRESH, "hello")]));
        ask(&cache, &stand, get(&[])).await.unwrap();
        settle().await;
        let odd = [
            (("cache-control", "no-cache, no-store"), Script::Answer(200, FRESH, "own")),
            (("authorization", "x"), Script::Answer(200, FRESH, "own")),
            (("x-odd", "1"), Script::Answer(406, "", "")),
            (("if-match", "\"x\""), Script::Answer(412, "", "")),
        ];
        for ((name, value), script) in odd {
            stand.0.scripts.borrow_mut().push_back(script);
            let mut wish = get(&[("cache-control", "no-cache")]);
            wish.head.headers.insert(name, value.parse().unwrap());
            ask(&cache, &stand, wish).await.unwrap();
            settle().await;
            let next = ask(&cache, &stand, get(&[])).await.unwrap();
            assert!(next.2 == "hello" && next.1.contains("hit"), "{name}: {next:?}");
        }
        assert!(
            stand.0.learned.borrow().iter().all(|shared| *shared),
            "nor does the service seem uncacheable"
        );
        // And where nothing is stored, who says who they are are passed by themselves.
        let (cache, stand) =
            (self::cache(), Stand::with((0..4).map(|_| Script::Answer(200, FRESH, "hello"))));
        let own = || get(&[("authorization", "x")]);
        assert!(ask(&cache, &stand, own()).await.unwrap().1.contains("detail=authorization"));
        assert!(ask(&cache, &stand, own()).await.unwrap().1.contains("detail=pass"));
        assert!(ask(&cache, &stand, get(&[])).await.unwrap().1.contains("stored"));
    })
    .await;
}

#[tokio::test]
async fn a_304_gives_nobody_what_is_one_clients() {
    local(async {
        let early = "cache-control: max-age=1\nage: 5\netag: \"a\"\ncache-tag: t";
        let renewed = "cache-control: max-age=60\netag: \"a\"\nset-cookie: session=1";
        let scripts = [Script::Answer(200, early, "page"), Script::Answer(304, renewed, "")];
        let (cache, stand) = (cache(), Stand::with(scripts));
        let fields = || async {
            let answered = respond(&cache, &stand, get(&[]), &ProxyMetrics::unregistered()).await.unwrap();
            settle().await;
            answered.response.into_parts().0.headers
        };
        fields().await;
        assert_eq!(fields().await["set-cookie"], "session=1", "whose request it answers gets it");
        let next = fields().await;
        assert!(next.contains_key("age") && !next.contains_key("set-cookie"), "{next:?}");
        // A 304 need not repeat tags.
        let what = Some(record::purge::What::Tag("t".to_owned()));
        let marks = vec![record::Purge { seq: 1, what, soft: false }];
        cache.purge("o/a", &record::Purges { floor: 0, marks }, |_, _| None);
        stand.0.scripts.borrow_mut().push_back(Script::Answer(200, early, "new page"));
        assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "new page");
        settle().await;
        // One that says that it is no longer for all.
        for said in ["cache-control: private, max-age=60", "cache-control: no-store"] {
            let scripts = [
                Script::Answer(304, said, ""),
                Script::Answer(200, said, "mine"),
                Script::Answer(200, early, "page"),
            ];
            stand.0.scripts.borrow_mut().extend(scripts);
            assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "mine", "{said}");
            settle().await;
            assert_eq!(ask(&cache, &stand, get(&[])).await.unwrap().2, "page", "{said}");
            settle().await;
        }
    })
    .await;
}

#[tokio::test]
async fn fields_of_one_client_reach_it_and_nobody_else() {
    local(async {
        let said = "cache-control: max-age=60, private=\"set-cookie, x-a\", no-cache=\"x-b\"\n\
                    set-cookie: a=1\nset-cookie: b=2\nx-a: a\nx-b: b\nx-c: c";
        let (cache, stand) = (cache(), Stand::with([Script::Answer(200, said, "hello")]));
        let fields = || async {
            let answered = respond(&cache, &stand, get(&[]), &ProxyMetrics::unregistered()).await.unwrap();
            settle().await;
            answered.response.into_parts().0.headers
        };
        let first = fields().await;
        let cookies: Vec<_> = first.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        assert!(["x-a", "x-b", "x-c"].iter().all(|name| first.contains_key(*name)), "{first:?}");
        let second = fields().await;
        assert!(second.contains_key("x-c") && second.contains_key("age"), "{second:?}");
        assert!(["set-cookie", "x-a", "x-b"].iter().all(|name| !second.contains_key(*name)), "{second:?}");
        assert_eq!(stand.asked(), 1);
    })
    .await;
}

#[tokio::test]
async fn conditions_reach_the_origin_of_what_is_not_stored() {
    local(async {
        let private = "cache-control: private\netag: \"a\"";
        let scripts = [Script::Answer(200, private, "mine"), Script::Answer(304, private, "")];
        let (cache, stand) = (cache(), Stand::with(scripts));
        ask(&cache, &stand, get(&[])).await.unwrap();
        assert_eq!(ask(&cache, &stand, get(&[("if-none-match", "\"a\"")])).await.unwrap().0, 304);
    })
    .await;
}
