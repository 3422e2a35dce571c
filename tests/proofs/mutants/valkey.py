# ruff: noqa: E501
"""Of the engine of many nodes: what the server does, what is appended, followed and read back, and the link to it."""

from proofs.mutants.mutant import Mutant, of

VALKEY = "tests/log/test_valkey.py"
SCRIPTS = "tests/log/test_valkey_scripts.py"
JOINED = "tests/test_joined.py"
FOLDER = "broker/log/engines/valkey"


def promised(*tests: str, file: str = VALKEY) -> str:
    """Return the tests of a file that hold a promise."""
    return " ".join(f"{file}::test_{test}" for test in tests)


LISTS = promised("the_scripts_do_what_lists_do", file="tests/log/test_valkey_steps.py")
MARKS = promised(
    "a_publish_that_came_with_other_content_is_not_stored_and_all_beside_it_are",
    "what_stands_for_the_content_of_a_publish_is_kept_for_the_window_and_not_for_ever",
    file=SCRIPTS,
)
BORN = promised(
    "an_account_is_born_after_all_that_was_before_it_and_after_what_a_node_has_seen",
    "an_account_whose_node_has_seen_more_is_born_again",
    file=SCRIPTS,
)
FLOOR = promised("another_history_begins_after_all_that_a_node_has_seen_though_the_servers_clock_is_behind")
STALE = promised("a_stale_replica_that_takes_its_place_has_another_history")
LOST = promised("a_server_that_lost_everything_has_another_history_and_everybody_hears_of_it")
EARLY = promised("what_arrives_while_it_is_not_known_where_an_account_is_is_not_lost")
MISSED = promised("a_message_that_is_lost_is_read_when_the_next_one_comes")
BEHIND = promised("who_is_live_is_told_how_many_a_node_missed_that_was_behind_the_window")
CUT = promised("a_link_that_is_cut_costs_nobody_anything")
AWAY = promised("while_the_server_is_away_a_publish_is_unavailable_after_its_deadline_and_nobody_can_open")
COUNTED = promised("gaps_are_counted_on_a_node_that_was_not_there")
LINGERING = promised("an_account_is_followed_while_somebody_needs_it_and_for_a_while_after_that")
TAKEN_BACK = promised("who_is_cancelled_takes_back_what_was_not_sent_and_nothing_else")
AGAIN = promised("an_own_repetition_of_a_lost_call_is_no_duplicate_but_the_same_id_twice_in_a_list_is")
BUDGET = promised("what_waits_for_a_server_that_is_away_has_a_budget")

MUTANTS: list[Mutant] = [
    *of(
        f"{FOLDER}/storing.py", LISTS,
        ("an id that comes twice in a call is stored once",
         "local before = here[identity] or seen[(at + 3) / 4 + 3]", "local before = seen[(at + 3) / 4 + 3]"),
        ("an id that the window holds is not stored again",
         "local before = here[identity] or seen[(at + 3) / 4 + 3]", "local before = here[identity]"),
        ("the window of the server has no more bytes than it may",
         "return oldest < ms - window or length > most or bytes > most_bytes end",
         "return oldest < ms - window or length > most end"),
        ("ids leave with their events",
         "    remove_ids(D, gone)\n", ""),
        ("events leave with their ids",
         "    redis.call('LTRIM', S, #gone, -1)\n", ""),
        ("what leaves the window is uncounted whole",
         "bytes = bytes - #old[j] - overhead", "bytes = bytes - #old[j]"),
        ("what one call brings is not dropped by it",
         "while budget > 0 and length > keep and", "while budget > 0 and length > 0 and"),
        ("a part of a list stands behind all that came before",
         "  head = head + behind\n", ""),
        ("a list that is the log's is counted in the window",
         "    redis.call('HINCRBY', KEYS[key + 2], '#y', meta[6])\n", ""),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised(
            "a_list_that_lives_no_more_is_not_gone_on_with_and_not_the_logs_and_its_ids_are_free",
            "who_thinks_of_another_history_stores_nothing",
            file=SCRIPTS,
        ),
        ("who thinks of another history stores nothing",
         "if id ~= generation then return {'stale', id} end", ""),
        ("what is for an account of a list that lives is not stored",
         "    if owner then busy[#busy + 1] = digits((key + 4) / 6) end\n", ""),
        ("what a dead list has left is taken back before anything is stored",
         "redis.call('EXISTS', lists .. owner) == 0 then", "false then"),
        ("a part of a list that lives no more is not stored",
         "elseif of_list and redis.call('EXISTS', lists .. list) == 0 then", "elseif false then"),
        ("a list that lives no more is not the log's",
         "if redis.call('EXISTS', KEYS[2]) == 0 then return {'lost'} end\n", ""),
        ("a list is the log's once",
         "  redis.call('HDEL', KEYS[key], 'o', 'u', 'v')\n", ""),
        ("ids of what is taken back are free",
         "    remove_ids(D, redis.call('LRANGE', S, -some, -1))\n", ""),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised(
            "what_a_dead_list_has_left_is_taken_back_little_by_little_before_anything_is_stored",
            "a_list_that_is_given_up_leaves_nothing_though_the_server_is_full",
            file=SCRIPTS,
        ),
        ("a list of which something is elsewhere is not the log's",
         "or meta[3] ~= ARGV[a] then", "then"),
        ("what is taken back leaves the index, too",
         "    redis.call('LTRIM', X, 0, -some - 1)\n", ""),
        ("no more is taken back in one step than may be",
         "local some = math.min(behind, taken_back)", "local some = behind"),
        ("what is left to be taken back is known",
         "redis.call('HSET', M, 'u', digits(behind - some))", "redis.call('HDEL', M, 'o', 'u', 'v')"),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("what_is_stored_where_nothing_was_left_goes_by_itself_too", file=SCRIPTS),
        ("a window that begins anew goes by itself",
         "oldest = ms; touched = 0 end", "oldest = ms end"),
        ("an index that begins anew goes by itself",
         "    if indexed == fresh then touched = 0 end\n", ""),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("a_list_whose_events_went_with_the_window_in_its_middle_is_lost", file=SCRIPTS),
        ("a list of which something is gone is not the log's",
         "  if redis.call('LLEN', KEYS[key + 1]) < tonumber(meta[3]) then return {'lost'} end\n", ""),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("what_is_too_much_after_a_list_leaves_the_window_little_by_little_but_not_the_list", file=SCRIPTS),
        ("what stands behind the head is no part of the window",
         "redis.call('LLEN', S) - (tonumber(meta[2]) or 0)", "redis.call('LLEN', S)"),
        ("the window's size is told when something has left",
         "if rest < budget then redis.call('HSET', D,", "if false then redis.call('HSET', D,"),
        ("of a window no more leaves in one step than may",
         "tonumber(counts[2]), budget, 128)", "tonumber(counts[2]), 100000, 128)"),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("a_list_that_came_with_other_content_is_not_stored_and_its_own_content_is_kept", file=SCRIPTS),
        ("a list that came with other content is not stored",
         "      if of_list then return {'reused'} end\n", ""),
        ("the content of a list is kept",
         "  if mark ~= '' then note(", "  if false then note("),
    ),
    *of(
        f"{FOLDER}/storing.py", promised("what_stands_behind_the_head_is_not_read", file=SCRIPTS),
        ("the index has every event",
         "indexed = redis.call('RPUSH', X, unpack(index, from, last))", "indexed = 0"),
    ),
    *of(
        f"{FOLDER}/scripts.py", promised("what_stands_behind_the_head_is_not_read", file=SCRIPTS),
        ("what stands behind the head is not read",
         "local at = -(head - from - #page) - behind\n", "local at = -(head - from - #page)\n"),
        ("what stands behind the head is not read back",
         "local at = -(head - through + #back) - 1 - behind\n", "local at = -(head - through + #back) - 1\n"),
        ("what stands behind the head is not in the index that is read",
         "from - head - behind, through - head - behind - 1)", "from - head, through - head - 1)"),
        ("the index is as long as it is without what stands behind the head",
         "local known = math.min(math.max(head + behind - ", "local known = math.min(math.max(head - "),
    ),
    *of(
        f"{FOLDER}/scripts.py",
        promised("a_list_whose_account_was_born_again_meanwhile_is_lost_and_none_of_it_is_read", file=SCRIPTS),
        ("a list whose account was born again has lost its place",
         "    if meta[4] then redis.call('HSET', KEYS[i], 'o', '-') end\n", ""),
    ),
    *of(
        f"{FOLDER}/scripts.py",
        promised("a_window_that_was_gone_for_longer_than_its_list_is_read_as_empty", file=SCRIPTS),
        ("a page begins at the head at most",
         "local oldest = math.min(math.max(head + behind - redis.call('LLEN', KEYS[2]), birth), head)\nlocal from",
         "local oldest = math.max(head + behind - redis.call('LLEN', KEYS[2]), birth)\nlocal from"),
    ),
    *of(
        f"{FOLDER}/lists.py", promised("a_list_of_ten_thousand_is_stored_part_by_part_and_a_longer_one_refused"),
        ("a long list goes in parts",
         "            if part and (weight >= PART or size >= PART_BYTES):", "            if part and False:"),
    ),
    *of(
        f"{FOLDER}/lists.py",
        promised("two_nodes_whose_lists_are_for_the_same_accounts_in_another_order_wait_for_each_other"),
        ("accounts are taken in one order by all nodes",
         "for account_id in sorted(by_account)}", "for account_id in by_account}"),
    ),
    *of(
        f"{FOLDER}/lists.py", promised("a_list_that_a_full_server_refuses_in_its_middle_leaves_nothing"),
        ("a list that is refused is taken back",
         "            await self._calls.take_back(self.name, list(self._begun))\n", ""),
    ),
    *of(
        f"{FOLDER}/appending.py", promised("a_list_that_lost_its_place_is_stored_anew_and_once"),
        ("a list that lost its place is stored anew",
         "            pass  # it waits again, and is stored anew\n", "            self._end(publish, unavailable())\n"),
    ),
    *of(
        f"{FOLDER}/appending.py", promised("a_list_takes_no_more_room_than_a_window_may_when_it_is_over"),
        ("what is too much leaves the window after a list",
         "            await long_list.trim()\n", "            pass\n"),
    ),
    *of(
        f"{FOLDER}/appending.py",
        promised("while_a_list_is_written_others_are_stored_and_nobody_sees_any_of_it_until_all_is_there"),
        ("what is for another node's list is tried again",
         "            self._busy.update(dict", "            raise\n            self._busy.update(dict"),
    ),
    *of(
        f"{FOLDER}/scripts.py", LISTS,
        ("positions of sixteen digits are written exactly",
         "local function digits(n) return string.format('%.0f', n) end\nlocal function history",
         "local function digits(n) return tostring(n) end\nlocal function history"),
    ),
    *of(
        f"{FOLDER}/scripts.py",
        promised("a_page_is_no_longer_than_was_asked_for_but_one_event_is_read_however_large", file=SCRIPTS),
        ("the index is told from where it was asked for",
         "math.max(known, tonumber(ARGV[3]), through - tonumber(ARGV[4]))", "math.max(known, through - tonumber(ARGV[4]))"),
        ("a page of the index is no longer than was asked for",
         "math.max(known, tonumber(ARGV[3]), through - tonumber(ARGV[4]))", "math.max(known, tonumber(ARGV[3]))"),
        ("a page begins where the window does, or later",
         "local from = math.max(tonumber(ARGV[2]), oldest)", "local from = tonumber(ARGV[2])"),
        ("one event is read from the server however large it is",
         "    if room < 0 and #page > 0 then break end", "    if room < 0 then break end"),
        ("one event is read back however large it is",
         "    if room < 0 and #back > 0 then break end", "    if room < 0 then break end"),
        ("a page back ends at the head at most",
         "local through = math.min(tonumber(ARGV[2]), head)\nlocal most, room, back",
         "local through = tonumber(ARGV[2])\nlocal most, room, back"),
        ("a page back is no longer than was asked for",
         "local most, room, back = math.min(tonumber(ARGV[3]), through - oldest)", "local most, room, back = through - oldest"),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("a_page_is_no_longer_than_was_asked_for_but_one_event_is_read_however_large", file=SCRIPTS),
        ("the window of the server has no more events than it may",
         "return oldest < ms - window or length > most or bytes > most_bytes end",
         "return oldest < ms - window or bytes > most_bytes end"),
    ),
    *of(
        f"{FOLDER}/storing.py", promised("a_list_longer_than_lua_unpacks_is_stored_whole", file=SCRIPTS),
        ("no more is unpacked at once than Lua can",
         "      local last = math.min(from + 999, fresh)", "      local last = fresh"),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("what_is_too_old_leaves_the_window_with_its_id_and_stays_in_the_index", file=SCRIPTS),
        ("what is too old leaves the window of the server",
         "return oldest < ms - window or length > most or bytes > most_bytes end",
         "return length > most or bytes > most_bytes end"),
    ),
    *of(
        f"{FOLDER}/storing.py", promised("times_never_go_back_though_the_servers_clock_does", file=SCRIPTS),
        ("times of an account never go back",
         "local ms = math.max(math.floor(us / 1000), tonumber(meta[3]) or 0)", "local ms = math.floor(us / 1000)"),
        ("when the last event was stored is kept",
         "redis.call('HSET', M, 'n', digits(head), 'l', digits(ms))", "redis.call('HSET', M, 'n', digits(head))"),
    ),
    *of(
        f"{FOLDER}/storing.py", BORN,
        ("an account that is born by an event begins after all that was before",
         "if meta[1] ~= generation then head = math.max(us, head + 1)", "if meta[1] ~= generation then head = us"),
    ),
    *of(
        f"{FOLDER}/scripts.py", BORN,
        ("an account that is born by a look begins after all that was before",
         "math.max(us, (tonumber(meta[2]) or 0) + 1, floor)", "math.max(us, floor)"),
        ("an account is born after what a node has seen",
         "math.max(us, (tonumber(meta[2]) or 0) + 1, floor)", "math.max(us, (tonumber(meta[2]) or 0) + 1)"),
        ("where a node has seen more than there is an account is born again",
         "if meta[1] ~= ARGV[1] or tonumber(meta[2]) < floor then", "if meta[1] ~= ARGV[1] then"),
    ),
    *of(
        f"{FOLDER}/storing.py",
        promised("what_is_published_is_the_events_or_only_their_head_if_they_are_large", file=SCRIPTS),
        ("large events are not sent to all nodes",
         "if size > published then redis.call", "if false then redis.call"),
    ),
    *of(
        f"{FOLDER}/storing.py", MARKS,
        ("a publish with the request_id of another is not stored",
         "and string.sub(kept, 15) ~= content then", "and false then"),
        ("of one publish in a call nothing is refused with another",
         "for i = tonumber(ARGV[at]), tonumber(ARGV[at + 1]) do reused[i] = true end",
         "for i = 1, tonumber(ARGV[at + 1]) do reused[i] = true end"),
        ("the content of a publish is remembered for the window",
         "if kept and tonumber(string.sub(kept, 1, 13)) >= ms - window and", "if kept and"),
        ("marks that are set aside are known still",
         "redis.call('HGET', Q, mark) or redis.call('HGET', P, mark)", "redis.call('HGET', Q, mark)"),
        ("marks are set aside before they are forgotten",
         "redis.call('RENAME', Q, P)", "redis.call('DEL', Q)"),
        ("no more marks of an account are kept than may be",
         "(tonumber(begun) < ms - window or redis.call('HLEN', Q) > most_marks) then", "(tonumber(begun) < ms - window) then"),
        ("marks go by themselves where nobody publishes any more",
         "  redis.call('PEXPIRE', Q, digits(2 * window + 1))\n", ""),
    ),
    *of(
        f"{FOLDER}/scripts.py", promised("a_first_replica_is_no_other_history"),
        ("a first replica makes no other history",
         "if known[1] and known[3] == run and string.match", "if false and string.match"),
    ),
    *of(
        f"{FOLDER}/scripts.py", promised("a_server_that_was_a_replica_meanwhile_has_another_history", file=SCRIPTS),
        ("a server that was a replica meanwhile has another history",
         "known[3] == run and string.match(info, 'master_replid2:(%x+)') == string.rep('0', 40) then", "known[3] == run then"),
    ),
    *of(
        f"{FOLDER}/appending.py", TAKEN_BACK,
        ("what was not sent is taken back with its publisher",
         "        if not publish.sent:\n", "        if False:\n"),
        ("places of what was taken back are free",
         "            self.under_way -= 1\n", ""),
    ),
    *of(
        f"{FOLDER}/appending.py", promised("who_is_cancelled_when_it_was_sent_loses_only_the_answer"),
        ("what was sent is not taken back",
         "        if not publish.sent:\n", "        if True:\n"),
    ),
    *of(
        f"{FOLDER}/appending.py", AGAIN,
        ("an own repetition is no duplicate",
         "                publish.sent_before = True\n", "                pass\n"),
        ("an id twice in a list is a duplicate when it is sent again too",
         "(not sent_before or position in seen)", "not sent_before"),
    ),
    *of(
        f"{FOLDER}/appending.py", AWAY,
        ("who waits too long is refused",
         "                    self._end(publish, unavailable())\n", "                    pass\n"),
    ),
    *of(
        f"{FOLDER}/appending.py", BUDGET,
        ("what waits has a budget",
         "elif self._bytes and self._bytes + publish.size > MAX_WAITING_BYTES:", "elif False:"),
        ("what is over leaves the budget",
         "            self._bytes -= publish.size\n", ""),
    ),
    *of(
        f"{FOLDER}/appending.py", promised("a_list_of_ten_thousand_is_stored_part_by_part_and_a_longer_one_refused"),
        ("a list that one step cannot store is refused",
         "elif publish.weight > MAX_EVENTS:", "elif False:"),
    ),
    *of(
        f"{FOLDER}/appending.py",
        promised("who_comes_while_a_long_list_is_written_out_is_stored_beside_it_but_no_other_of_its_accounts"),
        ("others' calls go on while a long list is written out",
         "                self._link.start_soon(self._store_long)\n", "                await self._store_long()\n"),
        ("what is for the accounts of a long list comes after it",
         "chosen, self._waiting = self._shares.choose(self._waiting, beside, short=bool(self._long))",
         "chosen, self._waiting = self._waiting, []"),
    ),
    *of(
        f"{FOLDER}/appending.py", promised("a_publish_is_told_when_a_replica_has_it_and_refused_if_none_does"),
        ("what too few replicas have is not answered as stored",
         "            elif not replicated:\n", "            elif False:\n"),
    ),
    *of(
        f"{FOLDER}/appending.py", promised("what_waited_for_the_server_goes_together"),
        ("what waits during a call goes together with the next",
         "            chosen, self._waiting = self._waiting, []\n", "            chosen, self._waiting = self._waiting[:1], self._waiting[1:]\n"),
    ),
    *of(
        f"{FOLDER}/appending.py",
        promised("a_publish_with_the_request_id_of_another_is_refused_at_every_node_and_stores_nothing", file=JOINED),
        ("what stands for the content goes with a publish",
         "                if publish.mark:\n", "                if False:\n"),
        ("who is not stored for his request_id hears why",
         "            if reused:\n", "            if False:\n"),
    ),
    *of(
        f"{FOLDER}/tail.py", EARLY,
        ("what arrives too early is noted",
         "            held.missed = True\n            return\n", "            return\n"),
        ("what was noted is read when it is known where an account is",
         "            if held.missed or buffer.head < head:", "            if buffer.head < head:"),
    ),
    *of(
        f"{FOLDER}/tail.py", promised("what_is_no_event_in_an_accounts_channel_harms_nobody"),
        ("what is no event in a channel is none",
         "        except ValueError:\n", "        except KeyError:\n"),
    ),
    *of(
        f"{FOLDER}/tail.py", FLOOR,
        ("the server is told what a node has seen",
         "        return self._buffer(held).head + (held.generation != self._link.generation) if held.known.is_set() else 0",
         "        return 0"),
    ),
    *of(
        f"{FOLDER}/tail.py", promised("the_last_message_before_silence_is_found_by_looking_at_the_heads"),
        ("heads are looked at now and then",
         "                self._link.start_soon(self._look_at, list(self._held.values()))\n", "                pass\n"),
    ),
    *of(
        f"{FOLDER}/tail.py", BEHIND,
        ("what a node missed is counted",
         "                self._log.skip(held.account_id, page, Mark", "                self._log.skip(held.account_id, None, Mark"),
        ("what is gone is gone over, and not waited for",
         "            elif after > asked_after:\n", "            elif False:\n"),
    ),
    *of(
        f"{FOLDER}/tail.py", LINGERING,
        ("an account is followed for a while after nobody needs it",
         "if not held.holders and held.released_at < since]:", "if not held.holders]:"),
        ("an account that somebody needs is followed",
         "            for held in [held for held in self._held.values() if not held.holders and held.released_at < since]:\n                await self._let_go(held)\n",
         "            for held in [held for held in self._held.values() if held.released_at < since]:\n                held.holders = 0\n                await self._let_go(held)\n"),
    ),
    *of(
        f"{FOLDER}/tail.py", AWAY,
        ("nobody waits for ever for an account that cannot be known",
         "            with trio.move_on_after(DEADLINE_SECONDS):\n                await held.known.wait()\n                return held\n",
         "            await held.known.wait()\n            return held\n"),
    ),
    *of(
        f"{FOLDER}/reaching.py", promised("a_cursor_that_a_node_was_told_before_it_heard_of_the_event_is_good"),
        ("a cursor that is ahead of this node is waited for",
         "if position is not None and position > buffer.head:", "if False:"),
    ),
    *of(
        f"{FOLDER}/reaching.py", promised("a_client_that_moves_from_node_to_node_with_its_cursor_sees_one_stream"),
        ("what came after a cursor is read back",
         "        await self._read_back(held, buffer, position, moment)\n", ""),
    ),
    *of(
        f"{FOLDER}/reaching.py", COUNTED,
        ("where events were is read back, too",
         "        if position is not None or moment is not None:\n", "        if False:\n"),
    ),
    *of(
        f"{FOLDER}/link.py", LOST,
        ("who is told of another history begins anew",
         'if isinstance(answer, list) and answer and answer[0] == STALE:', "if False:"),
    ),
    *of(
        f"{FOLDER}/link.py", promised("who_is_connected_to_a_quiet_account_hears_soon_that_the_server_lost_everything"),
        ("a quiet node finds out that there is another history",
         "        if generation.decode() != self.generation:\n", "        if False:\n"),
    ),
    *of(
        f"{FOLDER}/link.py", promised("a_full_server_stores_nothing_and_whoever_is_connected_stays"),
        ("a server that is full is there all the same",
         "            if str(error).startswith(_REFUSALS):\n", "            if False:\n"),
    ),
    *of(
        f"{FOLDER}/link.py",
        promised("what_was_published_while_a_link_was_cut_is_told_when_it_is_back_though_nothing_follows"),
        ("with another link all find out where they are",
         "            await greeting()\n", "            pass\n"),
    ),
    *of(
        f"{FOLDER}/link.py", promised("a_server_that_forgets_keys_by_itself_is_not_used"),
        ("a server that forgets keys by itself is not used",
         '        if policy != b"noeviction":\n', "        if False:\n"),
    ),
    *of(
        f"{FOLDER}/link.py", promised("a_server_that_brokers_of_another_version_use_is_not_used"),
        ("a server that has what cannot be read is not used", "        if form != FORMAT:\n", "        if False:\n"),
    ),
    *of(
        f"{FOLDER}/link.py", CUT,
        ("channels are heard again by another link",
         '            connection.send_command(b"SUBSCRIBE", *channels[start : start + _CHANNELS])\n', "            pass\n"),
    ),
    *of(
        f"{FOLDER}/link.py",
        promised("a_node_that_was_stopped_for_longer_than_its_lease_finds_others_in_its_clients_places", file=JOINED),
        ("a node that slept for longer than its lease begins anew",
         '            raise LinkLostError("this node did not renew its lease")\n', "            pass\n"),
    ),
    *of(
        f"{FOLDER}/link.py", promised("a_message_to_a_node_reaches_it_and_no_other"),
        ("a message to a node is handed on",
         "                        hear(push[2])\n", "                        pass\n"),
        ("a node's lease says that it lives",
         'await self._ask(b"SET", self.names.lease(self.node), "1", b"PX", LEASE_MS)', 'await self._ask(b"PING")'),
    ),
    *of(
        f"{FOLDER}/wire.py", promised("who_stands_on_a_nodes_wire_runs_scripts_of_his_own_and_hears_when_it_is_back"),
        ("who shares more than logs hears when the link is back",
         "        self._link.tasks.append(tell_of_it)\n", ""),
        ("a script that cannot be run is unavailable",
         "            return await self._link.run(known, keys, arguments)\n        except (LinkLostError, RefusedError):\n",
         "            return await self._link.run(known, keys, arguments)\n        except RefusedError:\n"),
    ),
    *of(
        f"{FOLDER}/__init__.py", promised("two_databases_of_one_server_have_nothing_to_do_with_each_other"),
        ("channels are those of one database",
         'self._channels = f"{TAG}{database}:"', 'self._channels = f"{TAG}:"'),
    ),
    *of(
        f"{FOLDER}/__init__.py", promised("an_event_is_the_same_text_whichever_node_tells_of_it"),
        ("an event has its own cursor at every node",
         'f"{event.type} {before}", after)', 'f"{event.type} {before}", "0" + after)'),
    ),
    *of(
        f"{FOLDER}/scripts.py", STALE,
        ("another server has another history",
         "if known[1] and known[2] == replid then return known[1] end", "if known[1] then return known[1] end"),
    ),
    *of(
        f"{FOLDER}/appending.py", CUT,
        ("a lost call is made again",
         "            self._waiting[:0] = again\n", "            pass\n"),
    ),
    *of(
        f"{FOLDER}/tail.py", MISSED,
        ("what does not come next is read",
         "if not entries or entries[0].position != buffer.head + 1 or", "if not entries or"),
    ),
]  # fmt: skip
"""Each is wrong by one small thing."""
