"""Crews of tests: one in this process, whose workers are lost as asked for; and one that kills a worker of another."""

import os
import signal
import threading
import time
from collections import Counter, deque

from delineate.jobs.handing import Heard


class Fake:
    """Its workers do a case when they are given it; `lost` says at which cases how many of them are lost."""

    threads, device = 1, "cpu"

    def __init__(self, do=lambda scan, again: {"case": scan.name}, workers=2, lost=(), unborn=0):
        self.do, self.workers, self.lost, self.unborn = do, workers, Counter(lost), unborn
        self.heard, self.given, self.hired, self.ended, self.doing = deque(), [], 0, 0, None

    def hire(self, worker, doing):
        self.hired, self.doing = self.hired + 1, doing
        self.unborn -= 1
        self.heard.append(Heard(worker, None, "no room") if self.unborn >= 0 else Heard(worker, {"ready": {}}))

    def give(self, worker, scan, again):
        self.given.append((worker, scan.name, again))
        self.lost[scan.name] -= 1
        if self.lost[scan.name] >= 0:
            self.heard.append(Heard(worker, None, "killed by SIGKILL"))
        else:
            self.heard.append(Heard(worker, {"entry": self.do(scan, again)}))

    def hear(self):
        return self.heard.popleft()

    def end(self):
        self.ended += 1


class Killing:
    """A crew of which the worker that gets the first case is killed when it has begun to write it."""

    def __init__(self, crew, folder):
        self.crew, self.folder, self.pids, self.killed, self.given, self.over = crew, folder, {}, [], [], False
        self.workers, self.threads, self.device, self.hired = crew.workers, crew.threads, crew.device, 0

    def hire(self, worker, doing):
        self.hired += 1
        self.crew.hire(worker, doing)

    def hear(self):
        heard = self.crew.hear()
        if heard.said and "ready" in heard.said:
            self.pids[heard.worker] = heard.said["ready"]["pid"]
        return heard

    def give(self, worker, scan, again):
        self.given.append((scan.name, again))
        if len(self.given) == 1:
            threading.Thread(target=self._kill, args=(self.pids[worker], scan.name)).start()
        self.crew.give(worker, scan, again)

    def end(self):
        self.over = True
        self.crew.end()

    def _kill(self, pid, name):
        while not (self.folder / f".writing-{name}").exists():
            if self.over:
                return
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        self.killed.append(name)
