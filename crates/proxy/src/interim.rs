//! Responses that come before the response, such as 103 (Early Hints): passed back to whoever asked, as they come.

use crate::headers;
use http::header::HeaderMap;
use http::{Response, StatusCode};
use std::fmt;
use std::rc::Rc;

/// So many are passed on of one response. Nobody needs more, and they are not bounded by anything else.
pub(crate) const INTERIM_MAX: usize = 8;

/// Passes a request's interim responses back to its client. Clones share it; the default has nobody to pass them to.
#[derive(Clone, Default)]
pub struct Interim(Option<Rc<dyn Back>>);

/// The way back to a client.
pub(crate) trait Back {
    /// Sends it, unless the final response has begun or the client is gone.
    fn send(&self, interim: Response<()>);
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interim").field(&self.0.is_some()).finish()
    }
}

impl Interim {
    pub(crate) fn by(back: Rc<dyn Back>) -> Self {
        Self(Some(back))
    }

    /// Whether anybody hears of them.
    pub(crate) fn is_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Passes one on (RFC 9110, section 15.2). `100` and `101` are between two neighbours, and stay there.
    pub(crate) fn pass(&self, status: StatusCode, fields: &HeaderMap) {
        let Some(back) = self.0.as_ref().filter(|_| is_end_to_end(status)) else { return };
        let mut interim = Response::new(());
        *interim.status_mut() = status;
        let passed = interim.headers_mut();
        *passed = fields.clone();
        headers::strip_hop_by_hop(passed);
        headers::strip_internal(passed);
        back.send(interim);
    }
}

fn is_end_to_end(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::CONTINUE && status != StatusCode::SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Kept(RefCell<Vec<Response<()>>>);

    impl Back for Kept {
        fn send(&self, interim: Response<()>) {
            self.0.borrow_mut().push(interim);
        }
    }

    #[test]
    fn hints_go_on_and_what_concerns_neighbours_stays() {
        let kept = Rc::new(Kept::default());
        let interim = Interim::by(Rc::<Kept>::clone(&kept));
        let mut fields = HeaderMap::new();
        for (name, value) in
            [("link", "</a.css>"), ("atoll-cluster", "x"), ("connection", "x-b"), ("x-b", "1")]
        {
            fields.insert(name, value.parse().expect("a value"));
        }
        for status in [100, 101, 102, 103, 200] {
            interim.pass(StatusCode::from_u16(status).expect("a status"), &fields);
        }
        let kept = kept.0.borrow();
        let statuses: Vec<u16> = kept.iter().map(|interim| interim.status().as_u16()).collect();
        assert_eq!(statuses, [102, 103]);
        let names: Vec<&str> = kept[1].headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["link"]);
    }
}
