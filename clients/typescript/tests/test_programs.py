"""Programs with the client, as their users start them: they end when they should, and trust whom they are told to."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from certificates import Authority
from conformance.packages import TYPESCRIPT
from processes import KEY, serving

from broker.keys import hash_key

SECONDS = 60
CLIENT = "import { DaimonWebSocket } from 'daimon-email';\n"


@pytest.fixture
def run(built):
    """Runs a program to its end, which it must find by itself; returns what it wrote."""

    def run(program, url, key):
        command = ["node", "--input-type=module", "-e", CLIENT + program]
        environment = {"PATH": os.environ["PATH"], "DAIMON_WS_URL": url, "DAIMON_API_KEY": key}
        done = subprocess.run(
            command, cwd=TYPESCRIPT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def test_a_program_that_closes_its_client_ends(run, local_broker):
    local_broker.receive_mail(subject="Hello")
    program = """
        const client = new DaimonWebSocket({ clientId: 'agent' });
        await client.connect();
        await client.sendEmail({ inbox_id: 'inbox_test', to: 'ada@example.com' });
        console.log((await client.waitFor('message.received', { since: '5m' })).message.subject);
        await client.close();
        console.log('closed');
    """
    assert run(program, local_broker.url, local_broker.key) == (0, ["Hello", "closed"], "")


def test_a_program_whose_client_cannot_go_on_is_told_so_and_ends(run, local_broker):
    program = """
        const client = new DaimonWebSocket({ clientId: 'agent' });
        await client.connect();
        const other = new DaimonWebSocket({ clientId: 'agent' });
        await other.connect();
        await client.closed.catch(({ code }) => console.log(code));
        await other.close();
    """
    code, said, complaint = run(program, local_broker.url, local_broker.key)
    assert (code, said) == (0, ["4409"])
    assert complaint.startswith("daimon-email: the client failed: ConnectionEndedError: another connection")


def test_a_program_that_is_refused_fails_with_the_reason(run, local_broker):
    code, _, complaint = run("await new DaimonWebSocket().connect();", local_broker.url, "dm_live_nobody")
    assert code == 1
    assert "ConnectionEndedError: refused with 401" in complaint


@pytest.fixture
def behind_tls(tmp_path):
    """A broker that speaks TLS: its URL, and the file of its authority."""
    authority = Authority(tmp_path)
    server = authority.sign()
    config = tmp_path / "broker.toml"
    config.write_text(
        f"[server]\ntls_certificate = '{server.tls_certificate}'\ntls_key = '{server.tls_key}'\n"
        f"[[accounts]]\nid = 'acct'\n[[accounts.keys]]\nid = 'key'\nsha256 = '{hash_key(KEY)}'\n"
    )
    with serving("--config", config) as (_, url):
        yield url.replace("127.0.0.1", "localhost"), authority.path


def test_a_broker_with_tls_is_trusted_if_its_authority_is_and_else_not(run, behind_tls):
    url, authority = behind_tls
    program = f"""
        import {{ readFileSync }} from 'node:fs';
        const client = new DaimonWebSocket({{ ca: readFileSync('{authority}', 'utf8') }});
        await client.connect();
        console.log(Object.keys(await client.ping()).join());
        await client.close();
        const stranger = new DaimonWebSocket({{ autoReconnect: false }});
        await stranger.connect().catch(({{ message }}) => console.log(message));
    """
    code, [answer, refusal], complaint = run(program, url, KEY)
    assert (code, answer, complaint) == (0, "server_time", "")
    assert "cannot be reached" in refusal
    assert "certificate" in refusal


def test_over_many_cuts_each_event_is_handled_once_and_each_answer_leaves_once(run, local_broker):
    count, cuts = 400, 20
    program = f"""
        const client = new DaimonWebSocket({{ reconnectDelay: 5, concurrency: 4, order: 'inbox' }});
        const seen = {{}};
        let left = {count};
        await new Promise((done) => {{
          client.on('message.received', async ({{ inbox_id, subject }}) => {{
            (seen[inbox_id] ??= []).push(Number(subject));
            await client.sendEmail({{ inbox_id, to: 'ada@example.com', subject }});
            left -= 1;
            if (left === 0) done();
          }});
          client.on('connected', () => client.send({{ action: 'next' }}).catch(() => {{}}));
          void client.connect();
        }});
        await client.close();
        console.log(JSON.stringify(seen));
    """
    numbers = iter(range(count))
    expected = {}

    def publish_and_cut(given):
        events = []
        for number in islice(numbers, count // cuts):
            inbox_id = f"inbox_{number % 3}"
            expected.setdefault(inbox_id, []).append(number)
            message = {"message_id": f"msg_{number}", "subject": str(number), "body": "x" * 2_000}
            events.append({"type": "message.received", "inbox_id": inbox_id, "payload": {"message": message}})
        if events:
            one_by_one.submit(lambda: (local_broker.publish(*events), local_broker.cut()))
        return {}

    with ThreadPoolExecutor(1) as one_by_one:  # the broker's own thread may not wait for itself
        local_broker.answer("next", publish_and_cut)
        code, [seen], complaint = run(program, local_broker.url, local_broker.key)
    assert (code, complaint) == (0, "")
    assert json.loads(seen) == expected
    sent = [(command.inbox_id, command.once) for command in local_broker.commands if command.action == "send_email"]
    assert len(sent) == len(set(sent)) == count


def test_workers_share_a_queue_and_each_mail_is_done_by_one(run, tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(
        f"[storage]\npath = '{tmp_path / 'broker.db'}'\nmin_free_bytes = 0\n"
        f"[[accounts]]\nid = 'acct'\ntier = 'developer'\n"
        f"[[accounts.keys]]\nid = 'key'\nsha256 = '{hash_key(KEY)}'\n"
        "[[accounts.queues]]\nid = 'support'\ninbox_ids = ['in_q']\norder = 'none'\n"
    )
    program = """
        const workers = [1, 2].map(() => new DaimonWebSocket({ inboxIds: [] }));
        await Promise.all(workers.map((worker) => worker.connect()));
        await workers[0].publish([0, 1, 2, 3, 4, 5].map((number) => ({
          type: 'message.received', inbox_id: 'in_q', payload: { message: { subject: `${number}` } },
        })));
        const [done, failed] = [[], []];
        let ended = 0;
        for (const worker of workers) worker.on('error', ({ message }) => failed.push(message));
        await Promise.all(workers.map(async (worker) => {
          for await (const lease of worker.queue('support')) {
            await lease.work(({ subject }) => {
              done.push(subject);
              if (subject === '3') throw new Error('not today');
            });
            ended += 1; // what is being acknowledged is not cut off
            if (ended === 6) await Promise.all(workers.map((one) => one.close()));
          }
        }));
        console.log(done.sort().join(), failed.join());
    """
    with serving("--config", path) as (_, url):
        assert run(program, url, KEY) == (0, ["0,1,2,3,4,5 not today"], "")
