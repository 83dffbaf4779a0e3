//! Compressing what is stored, off the path of requests: once for each coding that a client would have liked.

use super::Cache;
use super::answer::Asking;
use super::encoding::Coding;
use super::encoding::compress::compress;
use super::key::Key;
use super::object::Object;
use http::header::HeaderMap;
use std::sync::Arc;

/// Bodies that are compressed at a time: what is left of the processors is for requests.
pub(crate) const AT_ONCE: usize = 1;

/// Has a stored body compressed behind the answer that was just made of it, if whoever got that would have liked it so. Where too
/// many are at it, a later request asks again.
pub(crate) fn compress_behind(cache: &Arc<Cache>, key: &Key, object: &Arc<Object>, asking: Asking<'_>) {
    let Some(coding) = object.lacks(asking.accepted) else { return };
    let Ok(place) = Arc::clone(&cache.compressing).try_acquire_owned() else { return object.put_off(coding) };
    // It is found under what its variant has of the request.
    let fields = of_variant(object, asking.headers);
    let (cache, key, object) = (Arc::clone(cache), key.clone(), Arc::clone(object));
    let task = tokio::task::spawn_blocking(move || {
        encode(&cache, &key, &fields, &object, coding);
        drop(place);
    });
    // Nobody waits for it.
    drop(task);
}

fn of_variant(object: &Object, headers: &HeaderMap) -> HeaderMap {
    let lines =
        object.head.vary.iter().flat_map(|name| headers.get_all(name).iter().map(move |line| (name, line)));
    let mut fields = HeaderMap::new();
    for (name, line) in lines {
        fields.append(name.clone(), line.clone());
    }
    fields
}

fn encode(cache: &Cache, key: &Key, fields: &HeaderMap, object: &Arc<Object>, coding: Coding) {
    if let Some(body) = compress(coding, &object.body.bytes) {
        cache.index.replace(key, fields, object, |now| Arc::new(now.with_coding(coding, body.into())));
    }
}
