/** What comes from the broker. Members that this library does not know are kept like any other. */

/** A JSON object: its members are what the broker, or your deployment, put there. */
// biome-ignore lint/suspicious/noExplicitAny: any JSON may be in it
export type Fields = Record<string, any>;

/** A mail that came. What it says was written by a stranger. */
export interface Message extends Fields {
  message_id: string;
  inbox_id: string;
  from: string;
  to: string[];
  subject: string;
  body: string;
  labels: string[];
  in_reply_to?: string;
  thread_id?: string;
}

/** A mail of yours that could not be delivered. */
export interface Bounce extends Fields {
  message_id: string;
  recipient: string;
  reason: string;
}

/** A mail of yours that somebody called spam. */
export interface Complaint extends Fields {
  message_id: string;
  recipient: string;
  feedback_type: string;
}

/** An account that came to another tier. */
export interface Account extends Fields {
  tier: string;
  previous_tier: string;
}

/** What handlers of the planned types get; of every other type they get `Fields`. */
export interface Subjects {
  'message.received': Message;
  'message.bounced': Bounce;
  'message.complaint': Complaint;
  'account.upgraded': Account;
}

/**
 * Events that left the broker's window before this client could have them.
 *
 * `count` is how many of them were for it, null where the broker cannot know.
 */
export interface Gap {
  readonly from: string | null;
  readonly to: string;
  readonly count: number | null;
}

const UNSAID = { message_id: '', from: '', to: [], subject: '', body: '', labels: [] };

/** One event as it came. `Subject` is what its handlers get first. */
export class DaimonEvent<Subject extends Fields = Fields> {
  readonly type: string;
  readonly event_id: string;
  /** Undefined for an event of the account itself. */
  readonly inbox_id: string | undefined;
  /** RFC 3339, in UTC. */
  readonly created_at: string;
  readonly cursor: string;
  readonly payload: Fields;
  /** What handlers get first: of `message.received` the message, of every other type the payload. */
  readonly message: Subject;

  /**
   * @param frame the frame as it came
   * @param size its bytes
   * @throws TypeError if it is no event
   */
  constructor(
    readonly frame: Fields,
    readonly size = 0,
  ) {
    this.type = text(frame, 'type');
    this.event_id = text(frame, 'event_id');
    this.created_at = text(frame, 'created_at');
    this.cursor = text(frame, 'cursor');
    this.inbox_id = frame.inbox_id ?? undefined;
    this.payload = frame.payload ?? {};
    const message = this.payload.message;
    const isMail = this.type === 'message.received' && isObject(message);
    this.message = (isMail ? { ...UNSAID, inbox_id: this.inbox_id, ...message } : this.payload) as Subject;
  }

  /** What belongs together: the thread, else the inbox. */
  get thread(): string | undefined {
    return this.message.thread_id ?? this.inbox_id;
  }
}

/** Whether a value is a JSON object. */
export function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function text(frame: Fields, name: string): string {
  const value: unknown = frame[name];
  if (typeof value !== 'string') throw new TypeError(`${name}: ${JSON.stringify(value)} is no text`);
  return value;
}
