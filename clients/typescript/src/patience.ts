/** How long a connection may be silent. */

import { timing } from './timing.js';

/** Watches one connection, from its first frame on. */
export class Patience {
  #timer: ReturnType<typeof setTimeout> | undefined;
  #bytes: number | undefined;
  #watching = true;

  /**
   * @param heartbeatMs how often something is to be heard at least
   * @param bytesRead what was read so far, where that can be told: a long frame is a sign of life, too
   * @param ask asks the other side for a sign of life; undefined where it gives signs by itself
   * @param lost called when nothing was heard
   */
  constructor(
    readonly heartbeatMs: number,
    readonly bytesRead: () => number | undefined,
    readonly ask: (() => void) | undefined,
    readonly lost: () => void,
  ) {
    this.heard();
  }

  /** Something came. */
  heard(): void {
    if (!this.#watching) return;
    clearTimeout(this.#timer);
    this.#bytes = this.bytesRead();
    const heartbeat = this.ask ? Math.min(this.heartbeatMs, timing.sign) : this.heartbeatMs;
    this.#timer = setTimeout(() => this.#silent(), heartbeat);
  }

  #silent(): void {
    this.ask?.();
    this.#timer = setTimeout(() => (this.bytesRead() === this.#bytes ? this.lost() : this.heard()), timing.grace);
  }

  /** Watch, or look away: of who does not read nothing is heard. */
  watch(on: boolean): void {
    this.#watching = on;
    if (on) this.heard();
    else clearTimeout(this.#timer);
  }
}
