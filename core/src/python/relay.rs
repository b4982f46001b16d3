//! The relay of DNS questions, for shardnet/dns/relayed.py.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PySet, PyTuple};

use crate::relay::{self, Flight, Host, Inside, KEY_END, Kept, Limits, Patience, Target, Token, Why};
use crate::user::socket::Name;

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Bounds {
    guest: usize,
    waiting: usize,
    wait_s: f64,
    all: usize,
    guests: usize,
    askers: usize,
    rate: f64,
    size: u16,
    patience_s: (f64, f64),
    inside: Option<(Vec<u8>, Vec<u8>)>,
}

/// What Python is looked up in: answers and questions by key, names of the lab, zones and wildcards that names lie in.
#[derive(FromPyObject)]
struct Known<'py>(Bound<'py, PyDict>, Bound<'py, PyDict>, Bound<'py, PyDict>, Bound<'py, PySet>, Bound<'py, PyDict>);

/// A resolver's number, the domain that it is asked about, its sockaddr, whether it knows EDNS, its patience in seconds.
type Named = (usize, Vec<u8>, Vec<u8>, bool, f64);

#[pyclass(module = "shardnet._core", unsendable)]
pub struct Relay {
    inner: relay::Relay<Py<PyAny>>,
}

#[pymethods]
impl Relay {
    #[new]
    fn new(given: Bounds) -> PyResult<Relay> {
        let limits = Limits {
            guest: given.guest,
            waiting: given.waiting,
            wait_ns: ns(given.wait_s)?,
            all: given.all,
            guests: given.guests,
            askers: given.askers,
            rate: given.rate,
            size: given.size,
        };
        let patience = Patience { least_ns: ns(given.patience_s.0)?, most_ns: ns(given.patience_s.1)? };
        let inside = given.inside.map(|(v4, v6)| [table(&v4), table(&v6)]);
        Ok(Relay { inner: relay::Relay::new(limits, patience, Inside(inside))? })
    }

    fn fileno(&self) -> i32 {
        self.inner.fd()
    }

    fn aim(&mut self, targets: Vec<Named>) -> PyResult<()> {
        let targets = targets.into_iter().map(|(id, domain, sockaddr, edns, patience_s)| {
            Ok(Target { id, domain, name: name(&sockaddr)?, edns, patience_ns: ns(patience_s)?, answers: 0 })
        });
        self.inner.aim(targets.collect::<PyResult<_>>()?);
        Ok(())
    }

    fn answered(&mut self) -> Vec<(usize, f64)> {
        let heard = self.inner.targets().iter_mut().filter_map(|target| {
            let count = std::mem::take(&mut target.answers);
            (count > 0).then_some((target.id, target.patience_ns as f64 / 1e9))
        });
        heard.collect()
    }

    fn is_busy(&self) -> bool {
        self.inner.is_busy()
    }

    fn take<'py>(&mut self, datagrams: &Bound<'py, PyList>, now_s: f64, known: Known<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let py = datagrams.py();
        let mut hand = Hand::new(py, known);
        for datagram in datagrams {
            let fields = datagram.cast::<PyTuple>()?;
            let (payload, mac) = (fields.get_item(0)?, fields.get_item(5)?);
            let guest = mac.cast::<PyBytes>()?.as_bytes().try_into().map_err(|_| PyValueError::new_err("a MAC of not 6 bytes"))?;
            self.inner.take(payload.cast::<PyBytes>()?.as_bytes(), guest, datagram.unbind(), ns(now_s)?, &mut hand);
        }
        hand.done(&mut self.inner)
    }

    fn join(&mut self, key: &[u8], asker: Py<PyAny>) -> bool {
        self.inner.join(key, asker).is_none()
    }

    fn ready<'py>(&mut self, py: Python<'py>, now_s: f64, known: Known<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let mut hand = Hand::new(py, known);
        self.inner.ready(ns(now_s)?, &mut hand)?;
        hand.done(&mut self.inner)
    }

    fn late<'py>(&mut self, py: Python<'py>, now_s: f64, known: Known<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let mut hand = Hand::new(py, known);
        self.inner.late(ns(now_s)?, &mut hand);
        hand.done(&mut self.inner)
    }

    fn send(&mut self, sockaddr: &[u8], payload: &[u8]) -> PyResult<Token> {
        Ok(self.inner.send(&name(sockaddr)?, payload)?)
    }

    fn close(&mut self, token: Token) {
        self.inner.close(token);
    }

    fn done(&mut self, guest: [u8; 6]) {
        self.inner.done(guest);
    }
}

fn ns(seconds: f64) -> PyResult<u64> {
    std::time::Duration::try_from_secs_f64(seconds)
        .map(|duration| duration.as_nanos() as u64)
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn name(sockaddr: &[u8]) -> PyResult<Name> {
    Name::new(sockaddr).ok_or_else(|| PyValueError::new_err("longer than any address"))
}

fn table(bytes: &[u8]) -> [bool; 256] {
    std::array::from_fn(|byte| bytes.contains(&(byte as u8)))
}

/// What is gathered for Python in one call; what goes wrong in Python meanwhile is said at its end.
struct Hand<'py> {
    py: Python<'py>,
    known: Known<'py>,
    said: Bound<'py, PyList>,
    kept: Bound<'py, PyList>,
    left: Bound<'py, PyList>,
    heard: Bound<'py, PyList>,
    handed: Bound<'py, PyList>,
    came: Bound<'py, PyList>,
    error: Option<PyErr>,
}

impl<'py> Hand<'py> {
    fn new(py: Python<'py>, known: Known<'py>) -> Hand<'py> {
        let list = || PyList::empty(py);
        Hand { py, known, said: list(), kept: list(), left: list(), heard: list(), handed: list(), came: list(), error: None }
    }

    fn attempt<R>(&mut self, call: impl FnOnce(&mut Self) -> PyResult<R>) -> Option<R> {
        call(self).map_err(|error| self.error = Some(error)).ok()
    }

    fn done(self, relay: &mut relay::Relay<Py<PyAny>>) -> PyResult<Bound<'py, PyTuple>> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let counts = std::mem::take(&mut relay.counts);
        let counts = [
            ("forwarded", counts.forwarded),
            ("merged", counts.merged),
            ("limited", counts.limited),
            ("strange", counts.strange),
            ("truncated", counts.truncated),
        ];
        let counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        (self.said, self.kept, self.left, self.heard, self.handed, self.came, counts).into_pyobject(self.py)
    }
}

impl Host<Py<PyAny>> for Hand<'_> {
    fn knows(&mut self, key: &[u8]) -> bool {
        let known = self.attempt(|hand| {
            let Known(answers, questions, names, zones, wild) = &hand.known;
            let bytes = PyBytes::new(hand.py, key);
            if answers.contains(&bytes)? || questions.contains(&bytes)? {
                return Ok(true);
            }
            let mut name = &key[..key.len() - KEY_END];
            if names.contains(PyBytes::new(hand.py, name))? {
                return Ok(true);
            }
            while name[0] != 0 {
                let bytes = PyBytes::new(hand.py, name);
                if zones.contains(&bytes)? || (!wild.is_empty() && wild.contains(&bytes)?) {
                    return Ok(true);
                }
                name = &name[1 + usize::from(name[0])..];
            }
            Ok(false)
        });
        known.unwrap_or(true)
    }

    fn say(&mut self, to: &Py<PyAny>, answer: &[u8]) {
        self.attempt(|hand| {
            let to = to.bind(hand.py).cast::<PyTuple>()?;
            let answer = PyBytes::new(hand.py, answer).into_any();
            let rest = (1..6).map(|at| to.get_item(at));
            let fields = std::iter::once(Ok(answer)).chain(rest).collect::<PyResult<Vec<_>>>()?;
            hand.said.append(PyTuple::new(hand.py, fields)?)
        });
    }

    fn hear(&mut self, to: Py<PyAny>, message: &[u8]) {
        self.attempt(|hand| hand.heard.append((to, PyBytes::new(hand.py, message))));
    }

    fn keep(&mut self, key: &[u8], kept: &Kept, records: &[u8]) {
        if kept.hold_s == 0 {
            return;
        }
        self.attempt(|hand| {
            let ttls = PyTuple::new(hand.py, &kept.ttls)?;
            let [answers, authority, additional] = kept.counts;
            let (key, records) = (PyBytes::new(hand.py, key), PyBytes::new(hand.py, records));
            let counts = (answers, authority, additional);
            hand.kept.append((key, kept.flags, counts, records, ttls, kept.additional, kept.hold_s))
        });
    }

    fn leave(&mut self, to: Py<PyAny>) {
        self.attempt(|hand| hand.left.append(to));
    }

    fn hand(&mut self, token: Token, flight: Flight<Py<PyAny>>, why: Why) {
        self.attempt(|hand| {
            let askers = PyList::empty(hand.py);
            for asker in flight.askers {
                askers.append((PyBytes::new(hand.py, &asker.payload), asker.to))?;
            }
            let message = match why {
                Why::Late => None,
                Why::Broken => Some(PyBytes::new(hand.py, &[])),
                Why::Said(message) => Some(PyBytes::new(hand.py, message)),
            };
            let (key, guest) = (PyBytes::new(hand.py, &flight.key), PyBytes::new(hand.py, &flight.guest));
            let since_s = flight.since_ns as f64 / 1e9;
            hand.handed.append((token, key, guest, flight.target, flight.ident, flight.edns, since_s, askers, message))
        });
    }

    fn came(&mut self, token: Token, message: Option<&[u8]>) {
        self.attempt(|hand| hand.came.append((token, message.map(|message| PyBytes::new(hand.py, message)))));
    }
}
