//! `examples/agents/`: worktrees of one repository, each with servers on its own ports, and the other
//! files of the example.

#![cfg(unix)]

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use assert_cmd::assert::Assert;
use portlock_testkit::{Running, Said, Scene, answer, is_installed};
use serde_json::Value;
use tempfile::TempDir;

const NAMES: [&str; 3] = ["web", "api", "db"];

/// A repository with the files of the example.
struct Repository {
    scene: Scene,
    dir: TempDir,
}

impl Repository {
    /// Returns `None` if one of `programs` is not installed.
    fn new(programs: &[&str]) -> Option<Self> {
        if !programs
            .iter()
            .chain(&["git"])
            .all(|program| is_installed(program))
        {
            return None;
        }
        let repository = Self {
            scene: Scene::new(40),
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
        let example = cli.with_file_name("examples").join("agents");
        let main = repository.worktree("main");
        fs::create_dir(&main).expect("our own directory");
        for file in fs::read_dir(example).expect("the repository has it") {
            let file = file.expect("the repository has it");
            fs::copy(file.path(), main.join(file.file_name())).expect("our own directory");
        }
        fs::write(main.join(".gitignore"), ".env\n*.log\n").expect("our own directory");
        repository.git(&["init", "--quiet"]);
        repository.git(&["add", "--all"]);
        repository.git(&["commit", "--quiet", "--message=First"]);
        let hooks = main.join(".git/hooks");
        fs::create_dir_all(&hooks).expect("our own directory");
        fs::copy(main.join("post-checkout"), hooks.join("post-checkout")).expect("our own");
        Some(repository)
    }

    fn worktree(&self, name: &str) -> PathBuf {
        let dir = fs::canonicalize(self.dir.path()).expect("our own");
        dir.join(name)
    }

    #[track_caller]
    fn git(&self, args: &[&str]) {
        let mut git = self.command_in("main", "git");
        git.args(["-c", "user.name=A", "-c", "user.email=a@example.com"])
            .args(args);
        answer(git).code(0);
    }

    fn command_in(&self, worktree: &str, program: &str) -> Command {
        let mut command = self.scene.command(program);
        command
            .current_dir(self.worktree(worktree))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for name in NAMES {
            command.env_remove(format!("{}_PORT", name.to_uppercase()));
        }
        command
    }

    #[track_caller]
    fn run(&self, worktree: &str, line: &str) -> Assert {
        let mut command = self.command_in(worktree, "bash");
        command.args(["-c", line]);
        answer(command)
    }

    /// Returns the ports of a worktree, in the order of [`NAMES`].
    #[track_caller]
    fn ports(&self, worktree: &str) -> Vec<u16> {
        let env = self
            .run(worktree, "portlock env --format json web api db")
            .code(0)
            .json();
        let port = |name: &str| {
            let port = env[format!("{}_PORT", name.to_uppercase())].as_u64();
            u16::try_from(port.expect("a number")).expect("a port")
        };
        NAMES.map(port).to_vec()
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // A failed test must not leave servers running.
        let Ok(worktrees) = fs::read_dir(self.dir.path()) else {
            return;
        };
        for worktree in worktrees.flatten() {
            let mut stop = self.scene.program(["stop", "--all", "--timeout=1"]);
            let _ = stop.current_dir(worktree.path()).output();
        }
    }
}

/// Sends a request, and returns the answer up to the end of the connection.
#[track_caller]
fn ask(port: u16, request: &str) -> String {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
    server
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("not zero");
    server.write_all(request.as_bytes()).expect("it reads");
    let mut text = Vec::new();
    server.read_to_end(&mut text).expect("it answers");
    String::from_utf8_lossy(&text).into_owned()
}

#[track_caller]
fn get(port: u16, path: &str) -> String {
    ask(
        port,
        &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"),
    )
}

/// Asserts that each server of a worktree is its own.
#[track_caller]
fn assert_served(repository: &Repository, worktree: &str, ports: &[u16]) {
    let dir = repository.worktree(worktree);
    let path = dir.to_str().expect("UTF-8");
    let [web, api, db] = ports[..] else {
        panic!("three")
    };
    assert!(
        get(web, "/").ends_with(&format!("\r\n\r\nweb of {path}\n")),
        "{}",
        get(web, "/")
    );
    fs::write(dir.join("who.log"), worktree).expect("our own directory");
    assert!(get(api, "/who.log").ends_with(&format!("\r\n\r\n{worktree}")));
    let redis = ask(db, "CONFIG GET dir\r\nQUIT\r\n");
    assert!(redis.contains(&format!("\r\n{path}\r\n")), "{redis}");
    let list = repository
        .run(worktree, "portlock list --root . --json")
        .code(0)
        .json();
    let rows = list.as_array().expect("an array");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let name = row["name"].as_str().expect("a name");
        let index = NAMES
            .iter()
            .position(|known| *known == name)
            .expect("one of ours");
        assert_eq!(row["port"], ports[index]);
        assert_eq!(
            (&row["root"], &row["state"]),
            (&path.into(), &"leased".into())
        );
        if cfg!(target_os = "linux") {
            assert_eq!(
                (&row["server"], &row["cwd"]),
                (&"holder".into(), &path.into()),
                "{row}"
            );
        }
    }
}

#[test]
fn each_worktree_has_its_own_servers_on_the_same_ports_every_time() {
    let Some(repository) = Repository::new(&["node", "python3", "redis-server"]) else {
        return;
    };
    let start = Instant::now();
    let worktrees = ["a", "b", "c"];
    let mut all = HashSet::new();
    let mut ports_of = Vec::new();
    for worktree in worktrees {
        let path = format!("../{worktree}");
        repository.git(&["worktree", "add", "--quiet", &path]);
        // The hook has reserved the ports.
        let env = repository.worktree(worktree).join(".env");
        let env = fs::read_to_string(env).expect("the hook has written it");
        let ports = repository.ports(worktree);
        let [web, api, db] = ports[..] else {
            panic!("three")
        };
        assert_eq!(
            env,
            format!("WEB_PORT={web}\nAPI_PORT={api}\nDB_PORT={db}\n")
        );
        all.extend(ports.clone());
        ports_of.push(ports);
    }
    assert_eq!(all.len(), 9, "each has its own");
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for round in 0..2 {
        let before = Instant::now();
        // Start all servers at the same time.
        let running = worktrees.map(|worktree| {
            let mut command = repository.command_in(worktree, "./dev");
            command.arg("up");
            Running::start(command)
        });
        for (worktree, mut running) in worktrees.iter().zip(running) {
            let is_up = running.wait().success();
            assert!(is_up, "{}", repository.run(worktree, "tail *.log").out());
        }
        up.push(before.elapsed());
        for (worktree, ports) in worktrees.iter().zip(&ports_of) {
            assert_eq!(&repository.ports(worktree), ports);
            assert_served(&repository, worktree, ports);
        }
        if round == 0 {
            // Running servers are left alone.
            repository.run("a", "./dev up").code(0);
            assert_served(&repository, "a", &ports_of[0]);
        }
        let before = Instant::now();
        let [first, rest @ ..] = worktrees;
        repository
            .run(first, "./dev down")
            .code(0)
            .warns_of_nothing();
        // Only the worktree's own servers are stopped.
        for &port in &ports_of[0] {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("stopped");
        }
        for (worktree, ports) in rest.iter().zip(&ports_of[1..]) {
            assert_served(&repository, worktree, ports);
        }
        for worktree in rest {
            repository
                .run(worktree, "./dev down")
                .code(0)
                .warns_of_nothing();
        }
        down.push(before.elapsed());
        for &port in &all {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("stopped");
        }
        // Lose the lock directory, as after a reboot.
        for file in fs::read_dir(repository.scene.dir()).expect("our own directory") {
            fs::remove_file(file.expect("our own").path()).expect("our own");
        }
    }
    let env = repository.run("c", "portlock env").code(0);
    assert_eq!(env.out().lines().count(), 3, "{}", env.out());
    assert_eq!(repository.ports("b"), ports_of[1]);
    // The ports of a removed worktree are free.
    for worktree in worktrees {
        repository.git(&["worktree", "remove", "--force", &format!("../{worktree}")]);
    }
    for &port in &all {
        repository.scene.assert_leasable(port);
    }
    let clean = repository.run("main", "portlock clean --all").code(0);
    assert!(
        clean.out().contains("9 copies of reservations removed"),
        "{}",
        clean.out()
    );
    let list = repository
        .run("main", "portlock list --json")
        .code(0)
        .json();
    assert_eq!(list, Value::from(Vec::<Value>::new()));
    eprintln!(
        "3 worktrees, 9 servers, twice: up in {up:.1?}, down in {down:.1?}, all in {:.1?}",
        start.elapsed()
    );
}

#[test]
fn make_has_the_ports() {
    let Some(repository) = Repository::new(&["make", "node"]) else {
        return;
    };
    let urls = repository
        .run("main", "make urls")
        .code(0)
        .warns_of_nothing();
    let [web, api, _] = repository.ports("main")[..] else {
        panic!("three")
    };
    urls.prints_just(&format!("http://localhost:{web} http://localhost:{api}\n"));
    let mut command = repository.command_in("main", "make");
    command.arg("web");
    let mut server = Running::start(command);
    repository
        .run("main", "portlock wait web")
        .code(0)
        .warns_of_nothing();
    assert!(get(web, "/").contains("web of "));
    // The command of the recipe is portlock run, which became the server.
    repository.run("main", "make stop").code(0);
    assert!(!server.wait().success());
}

#[test]
fn npm_runs_the_scripts() {
    let Some(repository) = Repository::new(&["npm", "node"]) else {
        return;
    };
    let web = repository.ports("main")[0];
    let url = repository.run("main", "npm run --silent url").code(0);
    url.prints_just(&format!("http://localhost:{web}\n"));
    let mut command = repository.command_in("main", "npm");
    command.args(["run", "--silent", "dev"]);
    let mut server = Running::start(command);
    repository
        .run("main", "portlock wait web")
        .code(0)
        .warns_of_nothing();
    assert!(get(web, "/").contains("web of "));
    repository.run("main", "npm run --silent stop").code(0);
    server.wait();
    repository.run("main", "portlock check web").code(0);
}

#[test]
fn direnv_sets_the_variables() {
    let Some(repository) = Repository::new(&["bash"]) else {
        return;
    };
    let [web, api, db] = repository.ports("main")[..] else {
        panic!("three")
    };
    let expected = format!("{web} {api} {db}\n");
    let echo = "echo $WEB_PORT $API_PORT $DB_PORT";
    repository
        .run("main", &format!(". ./.envrc; bash -c '{echo}'"))
        .code(0)
        .prints_just(&expected);
    if !is_installed("direnv") {
        return;
    }
    let home = tempfile::tempdir().expect("a temporary directory");
    let home = home.path().display();
    let line = format!(
        "export HOME={home} XDG_DATA_HOME={home} XDG_CONFIG_HOME={home} DIRENV_LOG_FORMAT=
         direnv allow . && direnv exec . bash -c '{echo}'"
    );
    repository.run("main", &line).code(0).prints_just(&expected);
}

#[test]
fn docker_compose_reads_the_file() {
    let Some(repository) = Repository::new(&["bash"]) else {
        return;
    };
    let db = repository.ports("main")[2];
    repository.run("main", "portlock env db >.env").code(0);
    let text = fs::read_to_string(repository.worktree("main").join(".env")).expect("our own");
    assert_eq!(text, format!("DB_PORT={db}\n"));
    // This needs no daemon. Version 2 is a plugin.
    let plugin = "docker compose version >/dev/null 2>&1";
    let compose = if repository.run("main", plugin).get_output().status.success() {
        "docker compose"
    } else if is_installed("docker-compose") {
        "docker-compose"
    } else {
        return;
    };
    let config = repository.run("main", &format!("{compose} config")).code(0);
    assert!(config.out().contains(&db.to_string()), "{}", config.out());
    // Without the variable it says what is missing.
    fs::remove_file(repository.worktree("main").join(".env")).expect("our own");
    let config = repository.run("main", &format!("{compose} config 2>&1"));
    assert!(!config.get_output().status.success());
    assert!(
        config.out().contains("portlock env db >.env"),
        "{}",
        config.out()
    );
}

/// The page shows each file, and the keys of the JSON output.
#[test]
fn the_page_names_every_file_and_json_key() {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = cli.with_file_name("examples").join("agents");
    let read = |name: &str| fs::read_to_string(example.join(name)).expect("the repository has it");
    let page = read("README.md");
    for file in fs::read_dir(&example).expect("the repository has it") {
        let name = file.expect("the repository has it").file_name();
        let name = name.to_str().expect("UTF-8");
        assert!(
            name == "README.md" || page.contains(&format!("]({name})")),
            "{name}"
        );
    }
    // The file that an agent reads for each task is short.
    let lines = read("AGENTS.md")
        .lines()
        .filter(|line| line.starts_with("- "))
        .count();
    assert!(lines <= 10, "{lines}");
    // The table lists the printed keys.
    let scene = Scene::new(1);
    scene.portlock(["port", "web"]).code(0);
    let list = scene.portlock(["list", "--json"]).code(0).json();
    let keys: HashSet<String> = list[0]
        .as_object()
        .expect("an object")
        .keys()
        .cloned()
        .collect();
    let (_, table) = page.split_once("## What a tool reads").expect("a section");
    let shown = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let shown = shown.flat_map(|line| line.split(" | ").next().expect("a cell").split(", "));
    let shown: HashSet<String> = shown.map(|key| key.trim_matches('`').to_owned()).collect();
    let missing: Vec<&String> = shown.difference(&keys).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let missing: Vec<&String> = keys.difference(&shown).collect();
    assert!(missing.iter().all(|key| *key == "heir"), "{missing:?}");
}
