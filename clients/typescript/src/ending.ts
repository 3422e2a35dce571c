/** Why a connection ended, and whether and when to come back. Pure. */

const STAY_AWAY_CODES = new Set<number | string>([1002, 1007, 1008, 4401, 4409]);
const STAY_AWAY_STATUSES = new Set([400, 401, 403, 404, 426]);
const MAX_WAIT_MS = 60_000;
const WORDS: Record<number, string> = {
  1000: 'closed',
  1001: 'the broker or something before it went away',
  1002: 'broken framing',
  1006: 'the connection was lost',
  1007: 'text that is not UTF-8',
  1008: 'too many bad frames',
  1009: 'a message was too big',
  1011: 'the broker failed',
  1012: 'the broker restarts',
  4401: 'the key was revoked',
  4408: 'the broker heard nothing of this client',
  4409: 'another connection of the same client_id took over',
};

/** How a connection ended: by a close `code`, or refused with a `status` and the refusal's own code. */
export interface Ending {
  readonly reason: string;
  readonly code?: number | string | undefined;
  readonly status?: number | undefined;
  /** At least so long it is to be waited. */
  readonly waitMs?: number;
}

/** A connection, or its opening, has ended. */
export class EndedError extends Error {
  constructor(readonly ending: Ending) {
    super(ending.reason);
  }
}

/** Whether to open again after this. */
export function comesBack({ code, status }: Ending): boolean {
  return !STAY_AWAY_CODES.has(code ?? 0) && !STAY_AWAY_STATUSES.has(status ?? 0);
}

/** The end of a connection that was open; without a code, or with what stands for none, it broke. */
export function closed(code?: number, reason = ''): Ending {
  const known = code ?? 1006;
  const said = WORDS[known] ?? `closed with ${known}`;
  return { reason: reason && reason !== said ? `${said} (${reason})` : said, code: known };
}

/** The end of an opening that came to nothing. */
export function notOpened(why: string): Ending {
  return { reason: why, code: 1006 };
}

/** The end of an opening that was refused with a status and a body; `now` is milliseconds since 1970. */
export function refused(status: number, body: string, retryAfter: string | undefined, now: number): Ending {
  const { code, message } = errorOf(body);
  const reason = `refused with ${status}: ${message ?? code ?? 'no reason given'}`;
  return { reason, code, status, waitMs: retryAfterMs(retryAfter, now) };
}

function errorOf(body: string): { code?: string; message?: string } {
  try {
    const { code, message } = JSON.parse(body).error;
    return { code: String(code), message: String(message) };
  } catch {
    return {};
  }
}

/** The milliseconds of a Retry-After, a number of seconds or a date (RFC 9110 section 10.2.3); 0 for none. */
export function retryAfterMs(value: string | undefined, now: number): number {
  const said = value?.trim() ?? '';
  if (/^\d+$/.test(said)) return Number(said.slice(0, 9)) * 1_000;
  const at = Date.parse(said);
  return Number.isNaN(at) ? 0 : Math.max(0, at - now);
}

/** How long to wait before the next attempt: by chance, up to twice as long each time. */
export class BackOff {
  #attempts = 0;

  constructor(readonly firstMs: number) {}

  /** Begin anew. */
  succeeded(): void {
    this.#attempts = 0;
  }

  /** The milliseconds to wait after an ending; `chance` is from 0 to 1. */
  next(ending: Ending, chance: number): number {
    this.#attempts += 1;
    const asked = ending.waitMs ?? 0;
    if (ending.code === 1012 && asked > 0) return asked;
    return asked + chance * Math.min(MAX_WAIT_MS, this.firstMs * 2 ** Math.min(this.#attempts - 1, 30));
  }
}
