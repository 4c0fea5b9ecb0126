//! Who reads: sessions of this process, or of child processes of it, with a ledger each.

use crate::client::{Server, Session};
use crate::ledger::{Entry, Ledger, Stamp, Totals};
use crate::options::{Options, Share};
use crate::plan::Plan;
use crate::process::Program;
use crate::progress::Progress;
use crate::{Result, fail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinSet;

/// What all readers together have to tell at the end.
#[derive(Default, Deserialize, Serialize)]
pub struct Account {
    pub totals: Totals,
    /// Why sessions ended that should have lived.
    pub ended: Vec<String>,
}

/// The clock of a run: all its processes read the same.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// When it started, since 1970.
    fn origin(&self) -> Duration {
        SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(self.0.elapsed())
    }

    fn at(origin: Duration) -> Self {
        let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(origin);
        Self(Instant::now().checked_sub(age).unwrap_or_else(Instant::now))
    }
}

/// All readers of a server.
pub enum Readers {
    Here(Group),
    Elsewhere(Vec<Child>),
}

impl Readers {
    pub async fn start(options: &Options, plan: &Arc<Plan>, server: Server, clock: Clock) -> Result<Self> {
        if options.processes == 1 {
            return Ok(Self::Here(Group::new(plan, server, clock, 0..plan.readers)));
        }
        let place = |child| (u64::from(plan.readers) * u64::from(child) / u64::from(options.processes)) as u32;
        let mut children = Vec::new();
        for child in 0..options.processes {
            let Server { address, speech } = server;
            let (first, end) = (place(child), place(child + 1));
            let mut child = Child::start(&Share { first, end, origin: clock.origin(), speech, address })?;
            child.hear("ready").await?;
            children.push(child);
        }
        Ok(Self::Elsewhere(children))
    }

    /// Opens a session for each reader.
    pub async fn open(&mut self) -> Result<()> {
        match self {
            Self::Here(group) => group.open().await?,
            Self::Elsewhere(children) => {
                for child in &mut *children {
                    child.say("open").await?;
                }
                for child in children {
                    child.hear("opened").await?;
                }
            }
        }
        Ok(())
    }

    /// Lets them subscribe and read.
    pub async fn begin(&mut self, progress: &Arc<Progress>) -> Result<()> {
        match self {
            Self::Here(group) => group.begin(progress).await?,
            Self::Elsewhere(children) => {
                for child in children {
                    child.say("begin").await?;
                    child.hear("begun").await?;
                    child.listen(progress.clone());
                }
            }
        }
        Ok(())
    }

    /// Ends the sessions and closes the books.
    pub async fn close(self) -> Result<Account> {
        match self {
            Self::Here(group) => Ok(group.close()),
            Self::Elsewhere(children) => {
                let mut all = Account::default();
                for child in children {
                    let Account { totals, ended } = child.close().await?;
                    all.totals.add(totals);
                    all.ended.extend(ended);
                }
                Ok(all)
            }
        }
    }
}

/// Readers of this process.
pub struct Group {
    plan: Arc<Plan>,
    server: Server,
    clock: Clock,
    share: Range<u32>,
    opened: Vec<(Session, u32)>,
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    tasks: JoinSet<String>,
}

impl Group {
    fn new(plan: &Arc<Plan>, server: Server, clock: Clock, share: Range<u32>) -> Self {
        let (opened, ledgers, tasks) = (Vec::new(), Vec::new(), JoinSet::new());
        Self { plan: plan.clone(), server, clock, share, opened, ledgers, tasks }
    }

    async fn open(&mut self) -> Result<()> {
        let sessions = self.share.clone().map(async |reader| {
            let (reading, _) = self.plan.reading(reader);
            Ok::<_, crate::Error>((Session::enter(self.server, &reading.filter).await?, reader))
        });
        self.opened = stream::iter(sessions).buffered(self.plan.opening).try_collect().await?;
        Ok(())
    }

    async fn begin(&mut self, progress: &Arc<Progress>) -> Result<()> {
        let count = self.opened.len() as u64;
        let news = if self.plan.copies > 1 { count } else { 1 };
        let sessions = std::mem::take(&mut self.opened).into_iter().map(async |(mut session, reader)| {
            let (reading, lanes) = self.plan.reading(reader);
            session.read(&reading).await?;
            Ok::<_, crate::Error>((session, lanes))
        });
        let mut sessions = stream::iter(sessions).buffered(self.plan.opening);
        while let Some((session, lanes)) = sessions.try_next().await? {
            let ledger = Arc::new(Mutex::new(Ledger::new(lanes, self.plan.each)));
            self.ledgers.push(ledger.clone());
            self.tasks.spawn(read(session, ledger, self.plan.clone(), progress.clone(), self.clock, news));
        }
        Ok(())
    }

    fn close(mut self) -> Account {
        let mut account = Account::default();
        while let Some(Ok(reason)) = self.tasks.try_join_next() {
            account.ended.push(reason);
        }
        for ledger in &self.ledgers {
            let mut ledger = ledger.lock().expect("no reader panics");
            account.totals.add(std::mem::replace(&mut *ledger, Ledger::new(0..0, 0)).totals());
        }
        account
    }
}

/// Enters what arrives in the ledger, until the session ends; gives the reason. Each `news` arrivals are news.
async fn read(
    mut session: Session,
    ledger: Arc<Mutex<Ledger>>,
    plan: Arc<Plan>,
    progress: Arc<Progress>,
    clock: Clock,
    news: u64,
) -> String {
    loop {
        match session.next().await {
            Err(reason) => return reason.to_string(),
            Ok(frame) => match Stamp::find(frame) {
                Some(stamp) => {
                    let now = clock.elapsed();
                    let entry = ledger.lock().expect("no reader panics").enter(stamp, now);
                    if entry == Entry::New && progress.arrived(plan.is_last(stamp)).is_multiple_of(news) {
                        progress.tell();
                    }
                }
                None => eprintln!("a reader was told: {}", String::from_utf8_lossy(frame)),
            },
        }
    }
}

/// A process of this tool that has a share of the readers. It says `ready`; told to `open` and to `begin`, it says when
/// it has, then how many messages have arrived as they do; told to `close`, it gives its account.
pub struct Child {
    input: ChildStdin,
    output: Option<Lines<BufReader<ChildStdout>>>,
    listening: JoinSet<Result<Account>>,
    _program: Program,
}

impl Child {
    fn start(share: &Share) -> Result<Self> {
        let mut arguments: Vec<String> = std::env::args().skip(1).collect();
        arguments.extend(["--share".into(), share.to_string()]);
        let (program, input, output) = Program::child(arguments)?;
        let output = Some(BufReader::new(output).lines());
        Ok(Self { input, output, listening: JoinSet::new(), _program: program })
    }

    async fn say(&mut self, word: &str) -> Result<()> {
        Ok(self.input.write_all(format!("{word}\n").as_bytes()).await?)
    }

    async fn hear(&mut self, word: &str) -> Result<()> {
        let output = self.output.as_mut().expect("nobody else listens yet");
        match output.next_line().await? {
            Some(line) if line == word => Ok(()),
            other => fail(format!("a child process was to say {word}, and said {other:?}")),
        }
    }

    fn listen(&mut self, progress: Arc<Progress>) {
        let mut output = self.output.take().expect("nobody else listens yet");
        self.listening.spawn(async move {
            let mut known = (0, 0);
            while let Some(line) = output.next_line().await? {
                if line.starts_with('{') {
                    return Ok(serde_json::from_str(&line)?);
                }
                let (arrived, lasts) = line.split_once(' ').ok_or("a child process miscounts")?;
                let counts: (u64, u64) = (arrived.parse()?, lasts.parse()?);
                progress.add(counts.0 - known.0, counts.1 - known.1);
                known = counts;
            }
            fail("a child process ended early")
        });
    }

    async fn close(mut self) -> Result<Account> {
        self.say("close").await?;
        self.listening.join_next().await.expect("it has begun")?
    }
}

/// What a child process does in place of a run.
pub async fn serve(options: &Options, share: &Share) -> Result<()> {
    /// Arrivals are told no more often than this.
    const PAUSE: Duration = Duration::from_millis(1);
    let plan = Arc::new(Plan::new(options));
    let server = Server { address: share.address, speech: share.speech };
    let mut group = Group::new(&plan, server, Clock::at(share.origin), share.first..share.end);
    println!("ready");
    order().await?;
    group.open().await?;
    println!("opened");
    order().await?;
    let progress = Arc::new(Progress::default());
    group.begin(&progress).await?;
    println!("begun");
    let telling = async {
        let mut told = (0, 0);
        loop {
            progress.news().await;
            let counts = progress.counts();
            if counts != told {
                println!("{} {}", counts.0, counts.1);
                told = counts;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        end = order() => end?,
        () = telling => {}
    }
    println!("{}", serde_json::to_string(&group.close())?);
    Ok(())
}

/// Waits for a line of standard input, or for its end.
async fn order() -> Result<()> {
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}
