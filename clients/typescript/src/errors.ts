/** What the client throws, or rejects with. */

/** The root of all that the client throws. */
export class DaimonError extends Error {
  override name = 'DaimonError';
}

/**
 * The connection is gone, and is not opened again.
 *
 * `code` is the close code, or the refusal's own (`unauthorized`); `status` the HTTP status of a refusal.
 */
export class ConnectionEndedError extends DaimonError {
  override name = 'ConnectionEndedError';

  constructor(
    message: string,
    readonly code?: number | string,
    readonly status?: number,
  ) {
    super(message);
  }
}

/** What a client says that is closed. */
export function closedError(more = ''): ConnectionEndedError {
  return new ConnectionEndedError(`the client is closed${more}`, 1000);
}

/** The broker, or who does the command, refused it. */
export class CommandError extends DaimonError {
  override name = 'CommandError';

  /**
   * @param retryAfterMs when it may be tried again, in milliseconds
   * @param duplicate whether it is what another command with the same `once` was refused with
   */
  constructor(
    readonly code: string,
    message: string,
    readonly retryAfterMs?: number,
    readonly duplicate: boolean = false,
  ) {
    super(message);
  }
}

/** A command had no answer in time. It may have been done. */
export class TimedOutError extends DaimonError {
  override name = 'TimedOutError';
}

/** Too much waits for its answer already. */
export class OverflowingError extends DaimonError {
  override name = 'OverflowingError';
}

/** A webhook that this broker did not send, or not lately. */
export class BadSignatureError extends DaimonError {
  override name = 'BadSignatureError';
}

/** What was thrown, as an error, whatever it is. */
export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}
