//! A line with faults: what it does to the frames that are given to it, and when it lets go of each.
//!
//! A frame goes the way of a real line. It waits for the rate (`queue` limits how many wait there), then the wire may lose it,
//! double it, damage it, and takes its time. So a lost frame has used the line, as it would have.
//!
//! What happens to frame n is drawn from the seed and n alone, always in the same order, whatever happens to others and however
//! late the caller is: two lines with one seed that are given the same frames do the same to each. Only what the queue refuses
//! depends on time. Losses in bursts are Gilbert's model: a good state that loses nothing, a bad one that loses everything.
//!
//! Nothing here reads a clock or sleeps. The caller says what time it is and asks when the next frame is due. A late caller
//! costs no throughput: the rate is counted on a clock of its own.
//!
//! Jitter does not change the order of frames; `reorder` does, by sending some of them without the delay.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const SECOND_NS: u64 = 1_000_000_000;
/// A probability of one, as the settings have it.
pub const ALWAYS: u64 = 1 << 32;
/// Bytes under way in one direction beyond which a line takes no more.
pub const BYTES_MOST: usize = 64 << 20;
/// No time of the settings is longer.
pub const TIME_MOST_NS: u64 = 3600 * SECOND_NS;
/// A frame is damaged behind its two addresses, so that it still goes where it was to go.
const ADDRESSES: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Evenly over delay - jitter to delay + jitter.
    #[default]
    Uniform,
    /// Jitter is the standard deviation.
    Normal,
    /// The same, with a long tail (shape 3) and never much below the mean.
    Pareto,
}

/// What is wrong with a line. The default one is a plain wire. Probabilities are in 1 / `ALWAYS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    pub delay_ns: u64,
    pub jitter_ns: u64,
    pub distribution: Distribution,
    pub loss: u64,
    /// Frames that are lost in a row on average; 0: each is lost or not by itself.
    pub loss_burst: u64,
    pub duplicate: u64,
    pub reorder: u64,
    pub corrupt: u64,
    /// Bits a second of whole Ethernet frames; 0: no limit.
    pub rate_bps: u64,
    /// Bytes that may go at once after a pause.
    pub rate_burst: u64,
    /// How much may wait for the rate; 0: no limit of its own.
    pub queue_frames: u64,
    pub queue_bytes: u64,
    /// None: whatever the kernel's randomness says.
    pub seed: Option<u64>,
}

/// Settings as they lie in shared memory.
pub const WORDS: usize = 14;

impl Settings {
    pub fn words(&self) -> [u64; WORDS] {
        [
            self.delay_ns,
            self.jitter_ns,
            self.distribution as u64,
            self.loss,
            self.loss_burst,
            self.duplicate,
            self.reorder,
            self.corrupt,
            self.rate_bps,
            self.rate_burst,
            self.queue_frames,
            self.queue_bytes,
            self.seed.is_some().into(),
            self.seed.unwrap_or(0),
        ]
    }

    /// Whatever the words are, the settings are such as a line can work with.
    pub fn read(words: &[u64; WORDS]) -> Settings {
        let distribution = match words[2] {
            1 => Distribution::Normal,
            2 => Distribution::Pareto,
            _ => Distribution::Uniform,
        };
        Settings {
            delay_ns: words[0].min(TIME_MOST_NS),
            jitter_ns: words[1].min(TIME_MOST_NS),
            distribution,
            loss: words[3].min(ALWAYS),
            loss_burst: words[4].min(1 << 20),
            duplicate: words[5].min(ALWAYS),
            reorder: words[6].min(ALWAYS),
            corrupt: words[7].min(ALWAYS),
            rate_bps: words[8],
            rate_burst: words[9].min(BYTES_MOST as u64),
            queue_frames: words[10],
            queue_bytes: words[11],
            seed: (words[12] != 0).then_some(words[13]),
        }
    }

    pub fn is_plain(&self) -> bool {
        Settings { seed: None, ..*self } == Settings::default()
    }

    /// Must a super-frame be cut into the frames it stands for, so that each meets its own fate? A mere delay is the same for all.
    pub fn cuts(&self) -> bool {
        let delay = Settings { delay_ns: self.delay_ns, seed: self.seed, ..Settings::default() };
        *self != delay
    }
}

/// The randomness of one frame: SplitMix64 (Steele, Lea, Flood, 2014), from the seed and the frame's number.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64) -> Dice {
        let mut dice = Dice(seed);
        Dice(dice.word() ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn happens(&mut self, probability: u64) -> bool {
        self.word() >> 32 < probability
    }

    /// Above 0, at most 1.
    fn part(&mut self) -> f64 {
        ((self.word() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// What becomes of one frame, but for the queue.
struct Fate {
    lost: bool,
    double: bool,
    /// The bit that is turned, counted from anywhere.
    damaged: Option<u64>,
    overtakes: bool,
    delay_ns: u64,
}

/// What a line did with a frame that was given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Under way, so many times.
    Copies(u64),
    Lost,
    /// There is no room for it.
    Refused,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due_ns: u64,
    number: u64,
    frame: Box<[u8]>,
}

pub struct Line {
    settings: Settings,
    seed: u64,
    /// Frames that were given to this line.
    given: u64,
    /// Gilbert's bad state.
    bad: bool,
    /// When the rate has room again, and the part of a ns that it counted too little.
    free_ns: u64,
    rest: u64,
    /// Frames that wait for the rate: when each has gone, and its length.
    backlog: VecDeque<(u64, usize)>,
    backlog_bytes: usize,
    waiting: BinaryHeap<Reverse<Waiting>>,
    bytes: usize,
    put: u64,
    newest_due_ns: u64,
}

impl Line {
    /// `salt` tells lines with one seed apart; `entropy` is the seed where the settings have none.
    pub fn new(settings: Settings, salt: u64, entropy: u64) -> Line {
        let seed = settings.seed.map_or(entropy, |seed| Dice::new(seed, salt).word());
        Line {
            settings,
            seed,
            given: 0,
            bad: false,
            free_ns: 0,
            rest: 0,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            waiting: BinaryHeap::new(),
            bytes: 0,
            put: 0,
            newest_due_ns: 0,
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// From now on the line is so. What is under way stays so; a new seed needs a new line.
    pub fn change(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Frames under way.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drop what is under way; returns how many frames that were.
    pub fn clear(&mut self) -> usize {
        let frames = self.waiting.len();
        self.waiting.clear();
        self.bytes = 0;
        frames
    }

    /// When the next frame comes out.
    pub fn due_ns(&self) -> Option<u64> {
        self.waiting.peek().map(|Reverse(first)| first.due_ns)
    }

    /// The next frame, where it is due.
    pub fn pop(&mut self, now_ns: u64) -> Option<Box<[u8]>> {
        if self.due_ns()? > now_ns {
            return None;
        }
        let Reverse(first) = self.waiting.pop()?;
        self.bytes -= first.frame.len();
        Some(first.frame)
    }

    /// Give a frame to the line: `parts`, of which the first `skip` bytes travel with it and are no part of it.
    pub fn put(&mut self, now_ns: u64, parts: [&[u8]; 3], skip: usize) -> Taken {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let wire = length.saturating_sub(skip);
        let fate = self.fate();
        let Some(gone_ns) = self.depart(now_ns, wire) else { return Taken::Refused };
        if fate.lost {
            return Taken::Lost;
        }
        let copies = 1 + usize::from(fate.double);
        if self.bytes + copies * length > BYTES_MOST {
            return Taken::Refused;
        }
        let mut frame = parts.concat();
        if let Some(bit) = fate.damaged
            && wire > ADDRESSES
        {
            let bit = bit % (8 * (wire - ADDRESSES) as u64);
            frame[skip + ADDRESSES + bit as usize / 8] ^= 1 << (bit % 8);
        }
        let due_ns = if fate.overtakes {
            gone_ns
        } else {
            self.newest_due_ns = self.newest_due_ns.max(gone_ns + fate.delay_ns);
            self.newest_due_ns
        };
        if fate.double {
            self.push(due_ns, frame.clone());
        }
        self.push(due_ns, frame);
        Taken::Copies(copies as u64)
    }

    fn push(&mut self, due_ns: u64, frame: Vec<u8>) {
        self.bytes += frame.len();
        self.put += 1;
        self.waiting.push(Reverse(Waiting { due_ns, number: self.put, frame: frame.into_boxed_slice() }));
    }

    /// When a frame of `wire` bytes has left the rate behind; None where too many wait for it.
    fn depart(&mut self, now_ns: u64, wire: usize) -> Option<u64> {
        let Settings { rate_bps, rate_burst, queue_frames, queue_bytes, .. } = self.settings;
        if rate_bps == 0 {
            return Some(now_ns);
        }
        while let Some(&(gone_ns, len)) = self.backlog.front().filter(|(gone_ns, _)| *gone_ns <= now_ns) {
            debug_assert!(gone_ns <= now_ns);
            self.backlog_bytes -= len;
            self.backlog.pop_front();
        }
        let over_frames = queue_frames != 0 && self.backlog.len() as u64 >= queue_frames;
        // One frame may always wait, else a short queue would let no long frame pass.
        let over_bytes = queue_bytes != 0 && !self.backlog.is_empty() && (self.backlog_bytes + wire) as u64 > queue_bytes;
        if over_frames || over_bytes {
            return None;
        }
        let idle = now_ns.saturating_sub(time_ns(rate_burst, rate_bps));
        if self.free_ns < idle {
            (self.free_ns, self.rest) = (idle, 0);
        }
        let bits = wire as u64 * 8 * SECOND_NS + self.rest;
        self.free_ns += (bits / rate_bps).min(TIME_MOST_NS);
        self.rest = bits % rate_bps;
        let gone_ns = self.free_ns.max(now_ns);
        if gone_ns > now_ns {
            self.backlog.push_back((gone_ns, wire));
            self.backlog_bytes += wire;
        }
        Some(gone_ns)
    }

    /// Every draw is made for every frame.
    fn fate(&mut self) -> Fate {
        let Settings { loss, duplicate, reorder, corrupt, .. } = self.settings;
        let mut dice = Dice::new(self.seed, self.given);
        self.given += 1;
        let lost = self.lost(&mut dice, loss);
        let double = dice.happens(duplicate);
        let (damaged, bit) = (dice.happens(corrupt), dice.word());
        let overtakes = dice.happens(reorder);
        Fate { lost, double, damaged: damaged.then_some(bit), overtakes, delay_ns: self.delay(&mut dice) }
    }

    fn lost(&mut self, dice: &mut Dice, loss: u64) -> bool {
        let burst = self.settings.loss_burst;
        if burst == 0 {
            return dice.happens(loss);
        }
        // The bad state is left with 1 / burst, and entered so that `loss` of the time is spent there.
        let leave = ALWAYS / burst;
        let enter = (u128::from(leave) * u128::from(loss) / u128::from((ALWAYS - loss).max(1))).min(ALWAYS.into()) as u64;
        self.bad = if self.bad { !dice.happens(leave) } else { dice.happens(enter) };
        self.bad
    }

    fn delay(&self, dice: &mut Dice) -> u64 {
        let (one, two) = (dice.part(), dice.part());
        let Settings { delay_ns, jitter_ns, distribution, .. } = self.settings;
        // Mean 0; standard deviation 1, but for the even one, which goes from -1 to 1.
        let deviation = match distribution {
            Distribution::Uniform => 2.0 * one - 1.0,
            Distribution::Normal => (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos(), // Box and Muller, 1958
            // Shape 3, scale 1: mean 3/2, variance 3/4.
            Distribution::Pareto => (one.powf(-1.0 / 3.0) - 1.5) / 0.75f64.sqrt(),
        };
        let delay = delay_ns as f64 + jitter_ns as f64 * deviation;
        delay.clamp(0.0, 2.0 * TIME_MOST_NS as f64) as u64
    }
}

/// How long a line of this rate needs for so many bytes.
fn time_ns(bytes: u64, rate_bps: u64) -> u64 {
    (u128::from(bytes) * 8 * u128::from(SECOND_NS) / u128::from(rate_bps.max(1))).min(TIME_MOST_NS.into()) as u64
}
