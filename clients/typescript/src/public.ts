/** The public names that are the same everywhere. */

export type { Command } from './calls.js';
export {
  BadSignatureError,
  CommandError,
  ConnectionEndedError,
  DaimonError,
  OverflowingError,
  TimedOutError,
} from './errors.js';
export {
  type Account,
  type Bounce,
  type Complaint,
  DaimonEvent,
  type Fields,
  type Gap,
  type Message,
} from './events.js';
export type { CursorStore, Kept } from './keeping.js';
export type { Lease } from './leases.js';
export type { EventHandler, Happenings } from './listening.js';
export type { CommandOptions, DaimonOptions, Email, Published, SubscribeOptions } from './options.js';
export type { Order } from './queue.js';
export type { Found, Link, WaitOptions, Where } from './waiting.js';
export { isProcessed, processed, verify, type WebhookHeaders } from './webhooks.js';
