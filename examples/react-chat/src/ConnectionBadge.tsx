import type { Connection } from 'chat3-gateway-client';

const TEXTS: Record<Connection['status'] | 'recovered', [label: string, explanation: string]> = {
  connecting: ['Connecting…', 'Not connected to the gateway yet'],
  syncing: ['Fetching…', 'Connected; what happened before is being fetched'],
  live: ['Live', 'Every update arrives as it happens'],
  recovered: ['Recovered', 'Live again; what was missed has been delivered, once'],
  offline: ['Reconnecting…', 'The connection is lost; the client tries again by itself'],
  refused: ['Refused', 'The gateway did not accept the token'],
  closed: ['Closed', 'Signed out'],
};

export function ConnectionBadge({ connection, signIn }: { connection: Connection; signIn: () => void }) {
  const { status, recovered, reason } = connection;
  const shown = recovered ? 'recovered' : status;
  const [label, explanation] = TEXTS[shown];
  return (
    <div className="connection">
      <span className="badge" data-status={shown} role="status" title={reason ?? explanation}>
        {label}
        {status === 'refused' && `: ${reason}`}
      </span>
      {status === 'refused' && <button onClick={signIn}>Sign in again</button>}
    </div>
  );
}
