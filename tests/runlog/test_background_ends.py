"""The background log in programs that end, fork or are interrupted: no loss, no hanging."""

from pathlib import Path

from tests.runlog.written import records, run_python, steps


def test_a_program_that_ends_without_closing_leaves_nothing_in_the_queue(path: Path) -> None:
    run_python(
        """
        log = BackgroundLog(RunLogWriter(path))
        for n in range(2000):
            log.write({"kind": "step", "step": n})
        """,
        path,
    )
    assert steps(path) == list(range(2000))


def test_a_forked_child_neither_hangs_nor_writes(path: Path) -> None:
    done = run_python(
        """
        log = BackgroundLog(RunLogWriter(path))
        log.write({"kind": "step", "step": 1})
        log._lock.acquire()  # as if the fork came while the thread held it
        child = os.fork()
        if child == 0:
            import threading
            other = threading.Thread(target=log.write, args=({"kind": "step", "step": 2},))
            other.start()
            other.join()
            assert not log.sync()
            log.close()
            sys.exit(7)  # and with the atexit of a program that ends by itself
        log._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        log.write({"kind": "step", "step": 3})
        """,
        path,
    )
    assert steps(path) == [1, 3]
    assert done.stderr.count("belongs to the parent process") == 1


def test_interrupts_and_signal_handlers_that_log_leave_the_log_usable(path: Path) -> None:
    run_python(
        """
        log = BackgroundLog(RunLogWriter(path))

        def handler(number, frame):
            log.write({"kind": "event", "event": "tick"})
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, handler)
        interrupted = n = 0
        while interrupted < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
                while True:
                    log.write({"kind": "step", "step": (n := n + 1)})
                    if n % 100 == 0:
                        log.sync()
            except KeyboardInterrupt:
                interrupted += 1
        log.write({"kind": "event", "event": "end"})
        log.close()
        """,
        path,
    )
    written = records(path)
    assert sum(r.get("event") == "tick" for r in written) == 200
    assert written[-1]["event"] == "end"
    assert steps(path) == sorted(steps(path))
