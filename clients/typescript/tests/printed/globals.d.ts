/** What the printed snippets leave to their reader. */

import type * as library from 'daimon-email';

declare global {
  const inboxApiKey: string;
  const accountApiKey: string;
  const DaimonWebSocket: typeof library.DaimonWebSocket;
  const isProcessed: typeof library.isProcessed;
  function generateResponse(body: string): Promise<string>;
  function updateDashboard(inboxId: string, message: library.Message): void;
  function showAlert(text: string): void;
  function sendPushNotification(notification: { title: string; body: string }): void;
  function processMessage(message: library.Message): void;
  const app: {
    post(
      path: string,
      handler: (
        req: { body: library.DaimonEvent<library.Message> },
        res: { status(code: number): { send(text: string): void } },
      ) => void,
    ): void;
  };
}
