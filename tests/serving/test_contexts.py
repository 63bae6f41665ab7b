"""Where a request belongs: by example, and by properties over random clients."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentrt.serving.canonical import answered, chain
from agentrt.serving.contexts import Ask, ContextIndex, Limits, Placement

LIMITS = Limits(contexts=50, states=8, idle=100.0, idle_undelivered=10.0)


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


class Client:
    """Asks and answers against an index, keeping time."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        numbers = itertools.count(1)
        self.index = ContextIndex(limits, lambda: f"u{next(numbers)}")
        self.now = 0.0

    def ask(
        self, *texts: str, program: str | None = None, tenant: str = "t"
    ) -> tuple[Placement, list[bytes]]:
        roles = itertools.cycle(["user", "assistant"])
        messages = [say(role, text) for role, text in zip(roles, texts, strict=False)]
        digests = chain(tenant, messages)
        return self.index.place(Ask(tenant, program, digests), self.now), digests

    def turn(
        self, *texts: str, answer: str, program: str | None = None, tenant: str = "t"
    ) -> Placement:
        placement, digests = self.ask(*texts, program=program, tenant=tenant)
        state = answered(digests[-1], say("assistant", answer))
        self.index.finish(placement, state, self.now)
        self.index.check_integrity()
        return placement

    def lost(self, *texts: str, program: str | None = None) -> Placement:
        placement, _ = self.ask(*texts, program=program)
        self.index.finish(placement, None, self.now)
        self.index.check_integrity()
        return placement


class TestUnnamed:
    def test_a_conversation_is_one_context(self) -> None:
        client = Client()
        first = client.turn("a", answer="b")
        second = client.turn("a", "b", "c", answer="d")
        third = client.turn("a", "b", "c", "d", "e", answer="f")
        assert [each.how for each in (first, second, third)] == [
            "program",
            "continued",
            "continued",
        ]
        assert {(each.program, each.context) for each in (first, second, third)} == {
            (("t", "u1"), "main")
        }

    def test_another_answer_than_ours_is_another_program(self) -> None:
        client = Client()
        client.turn("a", answer="b")
        assert client.turn("a", "made up", "c", answer="d").how == "program"

    def test_a_made_up_first_exchange_does_no_harm(self) -> None:
        client = Client()
        first = client.turn("a", "made up", "c", answer="d")
        second = client.turn("a", "made up", "c", "d", "e", answer="f")
        assert second.program == first.program
        assert second.how == "continued"

    def test_identical_first_requests_are_programs_of_their_own(self) -> None:
        client = Client()
        one, _ = client.ask("a")
        two, _ = client.ask("a")
        assert one.program != two.program
        assert client.turn("a", answer="b").program not in (one.program, two.program)

    def test_identical_states_are_continued_one_each(self) -> None:
        client = Client()
        programs = {client.turn("a", answer="b").program for _ in range(3)}
        asked = [client.ask("a", "b", "c")[0] for _ in range(3)]
        assert {each.program for each in asked} == programs
        assert {each.how for each in asked} == {"continued"}
        assert client.ask("a", "b", "c")[0].how == "branch"

    def test_an_earlier_state_is_branched_from(self) -> None:
        client = Client()
        client.turn("a", answer="b")
        main = client.turn("a", "b", "c", answer="d")
        branch = client.turn("a", "b", "other", answer="x")
        assert (branch.how, branch.program) == ("branch", main.program)
        assert branch.context != main.context
        assert client.turn("a", "b", "c", "d", "e", answer="f").context == main.context
        follow = client.turn("a", "b", "other", "x", "y", answer="z")
        assert (follow.context, follow.how) == (branch.context, "continued")

    def test_a_busy_context_is_not_shared(self) -> None:
        client = Client()
        client.turn("a", answer="b")
        one, _ = client.ask("a", "b", "c")
        two, _ = client.ask("a", "b", "d")
        assert one.program == two.program
        assert one.context != two.context

    def test_tenants_never_meet(self) -> None:
        client = Client()
        mine = client.turn("a", answer="b")
        yours = client.turn("a", "b", "c", answer="d", tenant="v")
        assert yours.how == "program"
        assert yours.program != mine.program


class TestRetries:
    def test_what_was_not_delivered_is_asked_again(self) -> None:
        client = Client()
        lost = client.lost("a")
        again = client.turn("a", answer="b")
        assert (again.how, again.program, again.context) == ("retry", lost.program, lost.context)
        assert client.turn("a", answer="b").how == "program"

    def test_in_the_middle_of_a_conversation(self) -> None:
        client = Client()
        first = client.turn("a", answer="b")
        client.lost("a", "b", "c")
        again = client.turn("a", "b", "c", answer="d")
        assert (again.how, again.context) == ("retry", first.context)
        assert client.turn("a", "b", "c", "d", "e", answer="f").context == first.context

    def test_a_client_may_go_another_way_instead(self) -> None:
        client = Client()
        first = client.turn("a", answer="b")
        client.lost("a", "b", "c")
        assert client.turn("a", "b", "x", answer="y").context == first.context

    def test_a_running_turn_is_left_alone(self) -> None:
        client = Client()
        one, _ = client.ask("a", program="p")
        two, _ = client.ask("a", program="p")
        assert one.program == two.program
        assert one.context != two.context


class TestNamed:
    def test_side_requests_get_a_context_of_their_own(self) -> None:
        client = Client()
        title = client.turn("title please", answer="T", program="p")
        main = client.turn("task", answer="b", program="p")
        more = client.turn("task", "b", "c", answer="d", program="p")
        assert title.program == main.program == more.program == ("t", "p")
        assert title.context != main.context == more.context
        assert [title.how, main.how, more.how] == ["program", "context", "continued"]

    def test_a_name_is_not_overruled_by_a_prefix(self) -> None:
        client = Client()
        client.turn("a", answer="b", program="p")
        assert client.turn("a", "b", "c", answer="d", program="q").program == ("t", "q")

    def test_a_request_that_lost_its_name_is_found_by_its_prefix(self) -> None:
        client = Client()
        named = client.turn("a", answer="b", program="p")
        found = client.turn("a", "b", "c", answer="d")
        assert (found.program, found.context) == (named.program, named.context)

    def test_unnamed_programs_come_first(self) -> None:
        client = Client()
        client.turn("a", answer="b", program="p")
        unnamed = client.turn("a", answer="b")
        assert client.turn("a", "b", "c", answer="d").program == unnamed.program

    def test_a_chosen_name_that_looks_made_is_not_taken_again(self) -> None:
        client = Client()
        client.turn("x", answer="y", program="u1")
        assert client.turn("a", answer="b").program == ("t", "u2")

    def test_an_ended_program_starts_anew(self) -> None:
        client = Client()
        client.turn("a", answer="b", program="p")
        running, _ = client.ask("a", "b", "c", program="p")
        assert client.index.end(("t", "p"))
        assert not client.index.end(("t", "p"))
        fresh, digests = client.ask("a", "b", "c", program="p")
        assert fresh.how == "program"
        client.index.finish(running, b"late", client.now)  # is not the new turn's end
        assert client.index.statistics().running == 1
        client.index.finish(fresh, digests[-1], client.now)
        assert client.index.statistics().running == 0


class TestMemory:
    def test_idle_contexts_and_programs_are_forgotten(self) -> None:
        client = Client()
        client.turn("a", answer="b", program="p")
        client.now = 60.0
        client.turn("z", answer="y", program="p")
        client.now = 100.0
        gone = client.index.expire(client.now)
        assert (gone.contexts, gone.programs) == ([(("t", "p"), "main")], [])
        client.now = 160.0
        gone = client.index.expire(client.now)
        assert (gone.contexts, gone.programs) == ([(("t", "p"), "context-2")], [("t", "p")])
        assert client.index.statistics() == type(client.index.statistics())(0, 0, 0, 0)

    def test_what_was_never_delivered_goes_sooner(self) -> None:
        client = Client()
        lost = client.lost("a")
        client.now = 10.0
        assert client.index.expire(client.now).programs == [lost.program]
        client.index.check_integrity()

    def test_running_contexts_stay(self) -> None:
        client = Client()
        client.ask("a")
        assert client.index.expire(1e9).programs == []

    def test_the_least_recently_used_go_first(self) -> None:
        client = Client(Limits(contexts=2, states=8))
        placed = [client.turn(text, answer="!") for text in "abc"]
        client.turn("a", "!", "more", answer="?")
        assert client.index.expire(0.0).programs == [placed[1].program]
        assert client.index.statistics().contexts == 2

    def test_states_of_a_context_are_bounded(self) -> None:
        client = Client(Limits(states=2))
        said = ["q0"]
        for number in range(5):
            client.turn(*said, answer=f"a{number}")
            said += [f"a{number}", f"q{number + 1}"]
        assert client.index.statistics().states == 2
        assert client.turn("q0", "a0", "elsewhere", answer="x").how == "program"
        assert client.turn(*said[:8], "elsewhere", answer="x").how == "branch"


@dataclass
class Talk:
    """One simulated conversation, and where its turns went."""

    tenant: str
    name: str | None
    said: list[str]
    home: tuple[tuple[str, str], str] | None = None
    running: tuple[Placement, bytes] | None = None
    lost: bool = False
    last_used: float = 0.0
    earlier: list[list[str]] = field(default_factory=list)


class ManyClients(RuleBasedStateMachine):
    """Conversations whose texts tell them apart: each must always find its own context again."""

    def __init__(self) -> None:
        super().__init__()
        numbers = itertools.count(1)
        self.index = ContextIndex(LIMITS, lambda: f"u{next(numbers)}")
        self.now = 0.0
        self.texts = (f"text {number}" for number in itertools.count())
        self.talks: list[Talk] = []
        self.turns: set[int] = set()

    def choose(self, data: st.DataObject, *, running: bool) -> Talk:
        fitting = [talk for talk in self.talks if (talk.running is not None) == running]
        return data.draw(st.sampled_from(fitting))

    def place(self, talk: Talk) -> Placement:
        roles = itertools.cycle(["user", "assistant"])
        messages = [say(role, text) for role, text in zip(roles, talk.said, strict=False)]
        digests = chain(talk.tenant, messages)
        placement = self.index.place(Ask(talk.tenant, talk.name, digests), self.now)
        assert placement.turn not in self.turns
        self.turns.add(placement.turn)
        assert placement.program[0] == talk.tenant
        assert talk.name is None or placement.program[1] == talk.name
        talk.running = (placement, digests[-1])
        return placement

    @rule(tenant=st.sampled_from("ab"), name=st.sampled_from([None, None, "p", "q"]))
    def begin(self, tenant: str, name: str | None) -> None:
        talk = Talk(tenant, name, [next(self.texts)])
        placement = self.place(talk)
        assert placement.how in ("program", "context")
        talk.home = (placement.program, placement.context)
        taken = [other.home for other in self.talks]
        assert talk.home not in taken
        self.talks.append(talk)

    @precondition(lambda self: any(talk.running for talk in self.talks))
    @rule(data=st.data(), delivered=st.booleans())
    def finish(self, data: st.DataObject, delivered: bool) -> None:
        talk = self.choose(data, running=True)
        assert talk.running is not None
        placement, asked = talk.running
        answer = next(self.texts)
        state = answered(asked, say("assistant", answer)) if delivered else None
        self.index.finish(placement, state, self.now)
        talk.running, talk.lost, talk.last_used = None, not delivered, self.now
        if delivered:
            talk.said += [answer, next(self.texts)]

    @precondition(lambda self: any(not talk.running for talk in self.talks))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        talk = self.choose(data, running=False)
        placement = self.place(talk)
        assert (placement.program, placement.context) == talk.home
        assert placement.how == ("retry" if talk.lost else "continued")

    @precondition(lambda self: any(not talk.running for talk in self.talks))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        talk = self.choose(data, running=False)
        assert talk.home is not None
        program = talk.home[0]
        if any(each.running for each in self.talks if each.home and each.home[0] == program):
            return
        assert self.index.end(program)
        self.talks = [each for each in self.talks if each.home and each.home[0] != program]

    @rule(seconds=st.sampled_from([1.0, 20.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        gone = set(self.index.expire(self.now).contexts)
        for talk in self.talks:
            if talk.home in gone:
                assert talk.running is None
                assert self.now - talk.last_used >= LIMITS.idle_undelivered
        self.talks = [talk for talk in self.talks if talk.home not in gone]

    @invariant()
    def tables_agree(self) -> None:
        self.index.check_integrity()
        counted = self.index.statistics()
        assert counted.contexts == len(self.talks)
        assert counted.running == sum(talk.running is not None for talk in self.talks)


ManyClients.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestManyClients = ManyClients.TestCase


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from("xy"), min_size=1, max_size=5).filter(lambda t: len(t) % 2),
            st.sampled_from([None, "p"]),
            st.sampled_from(["x", "y", None]),
            st.booleans(),
        ),
        max_size=25,
    )
)
def test_lookalikes_never_share_a_context_at_a_time(
    asks: list[tuple[list[str], str | None, str | None, bool]],
) -> None:
    client = Client(Limits(contexts=6, states=3))
    running: dict[tuple[tuple[str, str], str], tuple[Placement, list[bytes], str | None]] = {}
    for texts, program, answer, wait in asks:
        placement, digests = client.ask(*texts, program=program)
        where = (placement.program, placement.context)
        assert where not in running
        running[where] = (placement, digests, answer)
        if not wait:
            for each, chained, said in running.values():
                state = None if said is None else answered(chained[-1], say("assistant", said))
                client.index.finish(each, state, client.now)
            running.clear()
        client.index.check_integrity()
        client.index.expire(client.now)
        client.index.check_integrity()
        assert client.index.statistics().contexts <= 6 + len(running)
