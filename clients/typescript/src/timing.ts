/** How long what may take. All in milliseconds. */
export const timing = {
  /** To connect, to agree on TLS, and to be answered. */
  open: 20_000,
  /** For the first frame of a connection. */
  ready: 30_000,
  /** For the answer to a goodbye. */
  goodbye: 5_000,
  /** A heartbeat may be so late. */
  grace: 10_000,
  /** At most between signs of life where pings are not seen. */
  sign: 30_000,
  /** For a command, unless it says otherwise; and for the handlers that are at work at the end. */
  command: 30_000,
  /** Between acknowledgements. */
  acknowledge: 1_000,
  /** Before what is worked on is held, how often it is held again, and for how long. */
  holdAfter: 10_000,
  holdEvery: 20_000,
  hold: 60_000,
  /** The broker waits for an event in one go: for a wait, and for a queue. */
  wait: 3_600_000,
  lease: 50_000,
  /** The answer to a wait may be so late. */
  answer: 5_000,
  /** Of handlers one after another, before the rest of the program has its turn. */
  turn: 8,
};

/** Resolves after so long, or at the end of a signal. */
export function sleep(ms: number, ...signals: AbortSignal[]): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      for (const signal of signals) signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    for (const signal of signals) signal.addEventListener('abort', done);
    if (signals.some((signal) => signal.aborted)) done();
  });
}

/** Resolves with the promise, or after so long. */
export async function within(ms: number, promise: Promise<unknown>): Promise<void> {
  const over = new AbortController();
  await Promise.race([promise, sleep(ms, over.signal)]);
  over.abort();
}

/** Resolves as the promise does; with undefined, if the signal ends before. */
export async function unlessOver<T>(over: AbortSignal, promise: Promise<T>): Promise<T | undefined> {
  let stop = () => {};
  const ended = new Promise<undefined>((resolve) => {
    stop = () => resolve(undefined);
  });
  over.addEventListener('abort', stop);
  if (over.aborted) stop();
  try {
    return await Promise.race([promise, ended]);
  } finally {
    over.removeEventListener('abort', stop);
  }
}

/** Resolves when the rest of the program had its turn. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === 'function') {
      setImmediate(resolve);
      return;
    }
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
